"""Many virtual devices: live over MQTT, or on a virtual clock."""
