"""Which configured camera a reading is about."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config import Arming, Camera, CameraDefaults, Cloud, Settings, Site, Source
from gateway.sources.plans import Plans, compile_sources
from gateway.sources.rules import BadSource
from tests.unit.frigate_messages import message, review


def site(camera_id: str | None = None, **tables: Any) -> Settings:
    return Settings(
        site=Site(location_id="L", recorder_id="site-recorder", camera_id=camera_id, timezone="America/Chicago"),
        cloud=Cloud.model_construct(url="https://api.chekt.com"),
        **tables,
    )


NVR, OTHER = Source(family="frigate", recorder_id="nvr-recorder"), Source(family="frigate", topic_prefix="other")


def test_a_camera_is_found_by_the_equipments_name_within_its_source() -> None:
    cameras = {
        "door": Camera(camera_id="1", name="cam1", source="nvr"),
        "gate": Camera(camera_id="2", name="cam1", source="other"),
        "cam2": Camera(camera_id="3"),
    }
    plans = Plans(site(sources={"nvr": NVR, "other": OTHER}, cameras=cameras))

    def found(source: str, camera: str) -> tuple[str | None, str | None] | None:
        plan = plans.find(source, camera)
        return None if plan is None else (plan.table, plan.camera_id)

    assert found("nvr", "cam1") == ("door", "1")
    assert found("other", "cam1") == ("gate", "2")
    assert found("nvr", "cam2") == found("other", "cam2") == ("cam2", "3")
    assert found("nvr", "door") is None, "the table's name is ours, not the equipment's"
    assert found("nvr", "cam3") is None


@pytest.mark.parametrize(
    ("of_site", "of_source", "camera_id"), [(None, None, None), ("s", None, "s"), ("s", "r", "r"), (None, "r", "r")]
)
def test_what_has_no_camera_goes_by_the_source_then_the_site(
    of_site: str | None, of_source: str | None, camera_id: str | None
) -> None:
    source = Source(family="frigate", camera_id=of_source, recorder_id="nvr-recorder")
    defaults = CameraDefaults.model_validate({"signal": False, "trouble_delay": "5s"})
    plan = Plans(site(of_site, sources={"nvr": source}, defaults=defaults)).find("nvr", None)
    assert plan is not None
    assert (plan.table, plan.camera_id, plan.recorder_id) == (None, camera_id, "nvr-recorder")
    assert (plan.signal, plan.trouble_delay) == (False, 5.0)
    assert Plans(site(sources={"nvr": OTHER})).find("nvr", None) != plan
    assert Plans(site(sources={"nvr": NVR})).find("elsewhere", None) is None


def test_every_source_reads_its_own_topics() -> None:
    compiled = compile_sources(site(sources={"nvr": NVR, "other": OTHER}))
    assert [name for name, source in compiled.items() if source.covers("other/reviews")] == ["other"]
    answer = compiled["nvr"].read(message(review()))
    assert isinstance(answer, list)
    assert answer[0].source == "nvr"
    assert compile_sources(site(sources={"nvr": NVR}).model_copy(update={"site": Site(location_id="L")}))


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (Source(family="frigate", min_score=0.5), "sources.nvr.min_score"),
        (Source(family="frigate", dialect="slang"), "sources.nvr.dialect"),
        (Source(family="frigat"), "sources.nvr.family"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_named_as_in_the_file(source: Source, key: str) -> None:
    with pytest.raises(BadSource) as caught:
        compile_sources(site(sources={"nvr": source}))
    assert caught.value.key == key


def test_panels_that_are_told_under_one_camera_are_one_site() -> None:
    """And what is told under a camera of its own is a site of its own."""
    sources = {
        "house": Source(family="panel"),
        "shed": Source(family="panel", topic_prefix="shed"),
        "office": Source(family="panel", topic_prefix="office", camera_id="office"),
    }

    def together(arming: Arming, table: str) -> tuple[str | None, set[str]]:
        plan: Any = Plans(site("site", sources=sources, arming=arming)).find(table, None)
        return plan.arming.camera_id, set(plan.arming.panels)

    assert together(Arming(enabled=True), "shed") == ("site", {"house", "shed"})
    assert together(Arming(enabled=True), "office") == ("office", {"office"})
    assert together(Arming(enabled=True, camera_id="arming"), "shed") == ("arming", {"house", "shed", "office"})
