"""The fleet moves traffic only to versions that can take it. With puppets instead of workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from muelle.config.sections import LifecycleConfig, ServeConfig
from muelle.control.tables import Traffic
from muelle.control.version import LiveVersion
from muelle.control.wanted import Artifact, Prepared
from muelle.core.errors import ArtifactError
from muelle.core.records import VersionRecord
from muelle.telemetry.metrics import VersionMetrics
from tests.unit.control.puppets import Harbour, ListedSource, Puppet


async def turns(n: int = 20) -> None:
    """Let the event loop and the executor get on."""
    for _ in range(n):
        await asyncio.sleep(0.001)


async def test_traffic_moves_when_the_new_version_is_ready_and_not_before() -> None:
    """While the new version loads, the old one has all traffic; then the new one has it."""
    source = ListedSource()
    source.want("m", "1")
    harbour = Harbour(source)
    await harbour.fleet.start()
    Puppet.script = {("m", "2"): "wait"}
    source.want("m", "2")
    await harbour.fleet.refresh()
    await turns()
    assert harbour.split("m") == {"1": 1.0}
    Puppet.made[-1].go.set()
    await harbour.fleet.settled()
    assert harbour.split("m") == {"2": 1.0}
    assert harbour.loaded() == {("m", "1"), ("m", "2")}  # the old one stays warm
    await harbour.fleet.stop(0)


async def test_a_version_that_fails_gets_no_traffic() -> None:
    """The old version goes on, and the failure can be seen."""
    source = ListedSource()
    source.want("m", "1")
    harbour = Harbour(source)
    await harbour.fleet.start()
    Puppet.script = {("m", "2"): "its answers differ"}
    source.want("m", "2")
    await harbour.fleet.follow()
    assert harbour.split("m") == {"1": 1.0}
    assert [(a.version, reason) for a, reason in harbour.fleet.failures()] == [
        ("2", "its answers differ")
    ]
    await harbour.fleet.stop(0)


async def test_going_back_to_a_warm_version_loads_nothing() -> None:
    """A rollback within keep_warm_s is one swap."""
    source = ListedSource()
    source.want("m", "1")
    harbour = Harbour(source)
    await harbour.fleet.start()
    source.want("m", "2")
    await harbour.fleet.follow()
    made = len(Puppet.made)
    source.want("m", "1")
    await harbour.fleet.refresh()
    assert harbour.split("m") == {"1": 1.0}
    assert len(Puppet.made) == made
    await harbour.fleet.stop(0)


async def test_the_old_version_goes_when_its_time_is_over() -> None:
    """After keep_warm_s without traffic its workers are ended."""
    now = [0.0]
    source = ListedSource()
    source.want("m", "1")
    config = ServeConfig(lifecycle=LifecycleConfig(keep_warm_s=60))
    harbour = Harbour(source, config, now=lambda: now[0])
    await harbour.fleet.start()
    old = Puppet.made[0]
    old.since = old.last_used = 0.0
    source.want("m", "2")
    await harbour.fleet.follow()
    now[0] = 59.0
    await harbour.fleet.refresh()
    assert not old.unloaded
    now[0] = 10_000.0
    await harbour.fleet.refresh()
    await turns()
    assert old.unloaded
    assert harbour.split("m") == {"2": 1.0}
    await harbour.fleet.stop(0)


async def test_a_split_waits_for_all_its_versions() -> None:
    """Half a canary is none: traffic is shared once every version of the route can answer."""
    source = ListedSource()
    source.want("m", "1")
    harbour = Harbour(source)
    await harbour.fleet.start()
    Puppet.script = {("m", "2"): "wait"}
    source.want("m", "1", "2", split={"1": 95.0, "2": 5.0})
    await harbour.fleet.refresh()
    await turns()
    assert harbour.split("m") == {"1": 1.0}
    Puppet.made[-1].go.set()
    await harbour.fleet.settled()
    assert harbour.split("m") == {"1": 95.0, "2": 5.0}
    await harbour.fleet.stop(0)


async def test_ensure_tells_why_a_version_cannot_serve() -> None:
    """Whoever wants to label it gets the reason, and nothing has changed."""
    source = ListedSource()
    source.want("m", "1", "2", split={"1": 1.0})
    harbour = Harbour(source)
    Puppet.script = {("m", "2"): "crashed"}
    await harbour.fleet.start()
    artifact = source.wanted["m"].versions["2"]
    with pytest.raises(ArtifactError, match="m:2: crashed"):
        await harbour.fleet.ensure(artifact)
    Puppet.script = {}
    live = await harbour.fleet.ensure(artifact)
    assert live.stage == "ready"
    harbour.fleet.release(artifact)
    assert harbour.split("m") == {"1": 1.0}
    await harbour.fleet.stop(0)


async def test_a_replaced_file_serves_when_it_can_and_the_old_content_until_then() -> None:
    """The same version with other content: the old workers answer until the new ones do."""
    source = ListedSource()
    source.want("m", "1", mark="a")
    harbour = Harbour(source)
    await harbour.fleet.start()
    Puppet.script = {("m", "1"): "broken"}
    source.want("m", "1", mark="b")
    await harbour.fleet.follow()
    first = Puppet.made[0]
    assert harbour.fleet.live("m", "1") is first
    assert harbour.split("m") == {"1": 1.0}
    made = len(Puppet.made)
    await harbour.fleet.follow()
    assert len(Puppet.made) == made  # a bad content is not tried again and again
    Puppet.script = {}
    source.want("m", "1", mark="c")
    await harbour.fleet.follow()
    await turns()
    assert harbour.fleet.live("m", "1") is Puppet.made[-1]
    assert first.unloaded
    await harbour.fleet.stop(0)


async def test_a_rollout_overrides_the_source_until_it_ends() -> None:
    """Shares of a rollout win over labels, and go away with it."""
    source = ListedSource()
    source.want("m", "1", "2", split={"1": 1.0})
    harbour = Harbour(source)
    await harbour.fleet.start()
    harbour.fleet.override("m", Traffic({"1": 75.0, "2": 25.0}))
    assert harbour.split("m") == {"1": 75.0, "2": 25.0}
    harbour.fleet.override("m", None)
    assert harbour.split("m") == {"1": 1.0}
    await harbour.fleet.stop(0)


async def test_a_source_that_cannot_be_read_changes_nothing() -> None:
    """What is served goes on when the disk of the store goes away."""

    class Broken(ListedSource):
        broken = False

        def read(self) -> object:  # type: ignore[override]
            if self.broken:
                raise OSError("the disk is gone")
            return super().read()

    source = Broken()
    source.want("m", "1")
    harbour = Harbour(source)
    await harbour.fleet.start()
    source.broken = True
    await harbour.fleet.refresh()
    assert harbour.split("m") == {"1": 1.0}
    assert "disk is gone" in harbour.fleet.problem
    await harbour.fleet.stop(0)


async def test_a_version_unloaded_while_its_files_are_laid_out_starts_nothing() -> None:
    """The real LiveVersion: when it is not wanted any more before its folder is there, no worker is
    started afterwards that nobody would end."""
    record = VersionRecord(
        model="m", version=1, digest="sha256:0", artifact="", runtime="onnx", format="ONNX"
    )
    artifact = Artifact("m", "1", Path("/x"), "onnx", "ONNX", record=record)
    loop = asyncio.get_running_loop()
    live = LiveVersion(
        artifact,
        ServeConfig(),
        VersionMetrics("m", "1"),
        loop=loop,
        listener=lambda event: None,
    )
    prepared: asyncio.Future[Prepared] = loop.create_future()
    loading = loop.create_task(live.load(prepared, one_try=False))
    await turns(3)
    await live.unload(0.0)
    prepared.set_result(Prepared(Path("/x"), "sha256:0"))
    await loading
    assert live.pool is None


async def test_a_replacement_under_way_is_not_started_again() -> None:
    """Looking at the folder while the new content loads changes nothing: one load for one."""
    source = ListedSource()
    source.want("m", "1", mark="a")
    harbour = Harbour(source)
    await harbour.fleet.start()
    Puppet.script = {("m", "1"): "wait"}
    source.want("m", "1", mark="b")
    for _ in range(4):
        await harbour.fleet.refresh()
    assert len(Puppet.made) == 2
    Puppet.made[-1].go.set()
    await harbour.fleet.settled()
    assert harbour.fleet.live("m", "1") is Puppet.made[-1]
    await harbour.fleet.stop(0)


async def test_warm_time_begins_when_the_traffic_goes() -> None:
    """An old version that nobody has asked for in days stays warm as long as any other."""
    now = [0.0]
    source = ListedSource()
    source.want("m", "1")
    harbour = Harbour(
        source, ServeConfig(lifecycle=LifecycleConfig(keep_warm_s=60)), now=lambda: now[0]
    )
    await harbour.fleet.start()
    old = Puppet.made[0]
    old.since = old.last_used = 0.0
    now[0] = 100_000.0
    source.want("m", "2")
    await harbour.fleet.follow()
    assert not old.unloaded
    now[0] += 59.0
    await harbour.fleet.refresh()
    assert not old.unloaded
    now[0] += 2.0
    await harbour.fleet.refresh()
    await turns()
    assert old.unloaded
    await harbour.fleet.stop(0)


async def test_on_demand_a_model_in_use_follows_its_labels() -> None:
    """Nobody asks for the new version while the old one answers: it is loaded all the same; a model
    that nobody uses is not."""
    source = ListedSource()
    source.want("m", "1")
    source.want("idle", "1")
    harbour = Harbour(source, ServeConfig(lifecycle=LifecycleConfig(on_demand=True)))
    await harbour.fleet.start()
    assert harbour.loaded() == set()
    harbour.inference.asked("m", None)
    await turns()
    await harbour.fleet.settled()
    assert harbour.split("m") == {"1": 1.0}
    source.want("m", "2")
    await harbour.fleet.follow()
    assert harbour.split("m") == {"2": 1.0}
    assert not {key for key in harbour.loaded() if key[0] == "idle"}
    await harbour.fleet.stop(0)
