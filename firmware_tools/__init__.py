"""Build-time tools: models for devices and microcontrollers."""
