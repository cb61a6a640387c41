"""A live run from beginning to end: data, aggregator, devices, and the folder; and the books at its close."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from broker.address import BrokerAddress
from broker.aggregator.config import OWN_BROKERS, AggregatorConfig
from broker.embedded import free_port
from broker.errors import PFedRecError
from broker.presets import load_preset
from broker.protocol.versions import sha256, table_bytes
from edge.fleet.aggregator_process import AggregatorProcess, aggregator_process
from edge.fleet.device import VirtualDevice
from edge.fleet.evaluator import Evaluator
from edge.fleet.live import LiveFleet, LiveSettings
from edge.fleet.mqtt import forget_earlier_run
from edge.fleet.progress import Progress
from edge.fleet.runfolder import RoundReport, RunFolder
from edge.fleet.scenario import Scenario, load_scenario
from trainer.sampling import Protocol


class LedgerError(PFedRecError):
    """The books do not balance: an update was lost or counted twice, or a device is out of step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveOptions:
    """What ``edge-fleet run`` was asked for."""

    data: str
    devices: int | None
    broker: str
    port: int | None
    fleet: str
    preset: str
    overrides: Mapping[str, Any]
    protocol: Protocol
    buffer: int
    max_staleness: int
    encoding: str
    versions: int
    deadline_s: float
    concurrency: int | None
    item_lr: float | None
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveOutcome:
    """What a run leaves beside its folder."""

    scenario: Scenario
    summary: dict[str, Any]
    ledger: dict[str, int]


async def run_live(
    options: LiveOptions,
    out: Path,
    directory: Path,
    *,
    overwrite: bool,
    save_users: bool,
    say: Callable[[str], None],
) -> LiveOutcome:
    """Run a live fleet.

    Parameters
    ----------
    directory : Path
        An empty one for the aggregator; the caller removes it.

    Raises
    ------
    LedgerError
        When the books do not balance.
    """
    scenario = load_scenario(options.data, options.protocol, options.seed, options.devices)
    preset = load_preset(options.preset, "pfedrec", options.overrides)
    taste = preset.taste(timed=scenario.data.timed)
    own_broker = options.broker in OWN_BROKERS
    port = options.port or free_port()
    config = AggregatorConfig.from_preset(
        preset,
        taste,
        fleet=options.fleet,
        broker=options.broker,
        port=port,
        buffer=options.buffer,
        deadline_s=options.deadline_s,
        max_staleness=options.max_staleness,
        population=scenario.n_users,
        # A device is due again at once; its turn comes when the fleet has room for it.
        check_in_s=0.0,
        max_idle_passes=1_000_000,
        encoding=options.encoding,
        item_lr=options.item_lr,
    )
    concurrency = min(options.concurrency or 2 * options.buffer, scenario.n_users)
    address = (
        BrokerAddress(host="127.0.0.1", port=port) if own_broker else BrokerAddress.parse(options.broker)
    )
    facts = {
        **asdict(options),
        "algorithm": "pfedrec",
        "hyperparameters": asdict(config.hyperparameters(scenario.data.n_items)),
        "taste": asdict(taste),
        "dim": preset.dim,
        # Printed, an address hides its password.
        "broker": options.broker if own_broker else str(address),
        "mode": "buffered",
        "data_sha256": scenario.sha256,
        "hold_out": scenario.data.hold_out,
        "concurrency": concurrency,
    }
    evaluator = Evaluator(scenario, taste=taste, select_by=preset.select_by)
    devices = [VirtualDevice(scenario, user, options.seed) for user in range(scenario.n_users)]
    progress = Progress(options.versions, "versions")
    quality = ""

    def on_round(report: RoundReport) -> None:
        nonlocal quality
        folder.add_round(report)
        quality = f"HR@10 {report.quality.test.hr:.3f}"

    settings = LiveSettings(
        fleet=options.fleet,
        address=address,
        versions=options.versions,
        concurrency=concurrency,
    )
    with closing(RunFolder(out, {"command": "run"} | facts, overwrite=overwrite)) as folder:
        if not own_broker:
            await forget_earlier_run(address, options.fleet)
        with aggregator_process(
            directory, config, scenario.data.item_keys, dim=preset.dim, scale=preset.scale, seed=options.seed
        ) as aggregator:
            say(f"{scenario.n_users} devices of fleet {options.fleet} at {address}")
            fleet = LiveFleet(
                settings, devices, aggregator, evaluator, lambda v: progress.update(v, quality), on_round
            )
            try:
                await fleet.run()
            finally:
                progress.close()
        ledger = _balanced(aggregator, devices)
        summary = folder.finish(scenario, evaluator.outcome(), facts, save_users=save_users)
    return LiveOutcome(scenario=scenario, summary=summary, ledger=ledger)


def _balanced(aggregator: AggregatorProcess, devices: list[VirtualDevice]) -> dict[str, int]:
    """Check that every update has exactly one fate and that every device holds the server's table."""
    ledger = aggregator.ledger()
    made = sum(device.updates_made for device in devices)
    version, digest = aggregator.newest()
    if made != ledger.counted + ledger.stale + ledger.rejected + ledger.dropped or ledger.pending:
        raise LedgerError(
            f"{made} updates were made, but the aggregator counted {ledger.counted}, found {ledger.stale} "
            f"stale, rejected {ledger.rejected}, dropped {ledger.dropped}, and has {ledger.pending} pending"
        )
    tables = {id(device.table): device.table for device in devices}
    out_of_step = [device.name for device in devices if device.session.version != version]
    if out_of_step or any(table is None or sha256(table_bytes(table)) != digest for table in tables.values()):
        raise LedgerError(f"{len(out_of_step)} devices are not at version {version} of the aggregator")
    return {
        "made": made,
        "counted": ledger.counted,
        "stale": ledger.stale,
        "rejected": ledger.rejected,
        "dropped": ledger.dropped,
        "duplicates": ledger.duplicates,
        "devices": len(devices),
        "version": version,
    }
