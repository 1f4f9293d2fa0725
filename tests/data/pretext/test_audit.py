"""The audit finds planted leaks, shows the known one, and passes what ships."""

from pathlib import Path

import numpy as np
import pytest

from mmrl.data.pretext.audit import picture_cues
from mmrl.data.pretext.audit.audit import LIMIT, audit, collect, examine, gap_curve
from mmrl.data.pretext.audit.shortcut_audit import MajorityAuditor, MetaAuditor, auditors
from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.contract import Visual
from mmrl.data.pretext.craft.procedural import clip, scene
from mmrl.data.pretext.presets import PRESETS, Ingredient, TaskMix
from mmrl.data.pretext.stream.sources import DrawnSource
from mmrl.data.pretext.stream.stream import SampleStream

SOURCE = DrawnSource(7)


def of(name: str, count: int = 60, **knobs):
    return collect(SampleStream(SOURCE, TaskMix("one", (Ingredient(name, 1.0, knobs),))), count)


def test_matching_borders_solves_a_jigsaw_whose_tiles_touch_and_fails_with_the_gap() -> None:
    curve = gap_curve(SOURCE, (0.0, 0.06, 0.15), samples=10)
    solved = [row["solved"] for row in curve]
    assert solved[0] >= 0.8 and solved[0] > solved[1] > solved[2] and solved[2] <= 0.2
    jittered = gap_curve(SOURCE, (0.15,), samples=10, jitter=True)[0]
    assert jittered["solved"] <= LIMIT + 0.1


def test_the_paper_preset_leaks_and_ours_does_not() -> None:
    task = find("jigsaw")
    leaks = {
        gap: {
            f.auditor
            for f in examine(task, of("jigsaw", 30, gap=gap, jitter=gap > 0, side=448))
            if f.leaks
        }
        for gap in (0.0, 0.15)
    }
    assert leaks == {0.0: {"boundary"}, 0.15: set()}


def test_there_are_eight_auditors_with_names_of_their_own() -> None:
    names = [auditor.name for auditor in auditors()]
    assert len(set(names)) == len(names) == 8


@pytest.mark.parametrize("name", ["rotation", "relative-position", "edit-program"])
def test_auditors_stay_near_chance_on_sound_tasks(name: str) -> None:
    findings = examine(find(name), of(name, 40))
    assert len(findings) == 8 and not [f for f in findings if f.leaks]
    assert all(0.0 <= f.accuracy <= 1.0 and f.samples == 20 for f in findings)


def test_a_constant_answer_is_found_by_majority_and_position() -> None:
    task = find("mosaic")
    samples = [s for s in of("mosaic", 60, pictures=4, side=96) if s.truth["answer"] == "A"]
    leaks = {f.auditor for f in examine(task, samples[:12]) if f.leaks}
    assert {"majority", "position"} <= leaks


def test_an_answer_in_the_words_is_found_by_the_blind_auditor() -> None:
    from dataclasses import replace

    def told(sample):
        part = {
            "type": "text",
            "text": f"hint{sample.truth['answer']} {sample.messages[0]['content'][-1]['text']}",
        }
        return replace(
            sample,
            messages=(
                {"role": "user", "content": [*sample.messages[0]["content"][:-1], part]},
            ),
        )

    task = find("rotation")
    findings = {
        f.auditor: f
        for f in examine(task, [told(sample) for sample in of("rotation", 60, side=112)])
    }
    assert findings["blind"].leaks and findings["blind"].accuracy > 0.9


def test_an_answer_in_the_size_is_found_by_the_meta_auditor() -> None:
    from dataclasses import replace

    def sized(sample):
        pixels = sample.visuals[0].pixels
        return replace(sample, visuals=(Visual(pixels[: 300 - sample.truth["answer"] // 10]),))

    task = find("rotation")
    findings = {
        f.auditor: f for f in examine(task, [sized(sample) for sample in of("rotation", 60)])
    }
    assert findings["meta"].leaks and findings["meta"].accuracy > 0.7


def test_a_blurred_option_is_found_by_sharpness() -> None:
    from dataclasses import replace

    from mmrl.data.pretext.tasks.quality_order import degraded

    rng = np.random.default_rng(0)

    def blurred(sample):
        chosen = next(
            i for i, v in enumerate(sample.visuals) if v.label == f"{sample.truth['answer']}:"
        )
        worse = degraded(sample.visuals[chosen].pixels, "blur", 6.0, rng)
        visuals = list(sample.visuals)
        visuals[chosen] = replace(visuals[chosen], pixels=worse)
        return replace(sample, visuals=tuple(visuals))

    findings = {
        f.auditor: f
        for f in examine(find("mosaic"), [blurred(s) for s in of("mosaic", 40, side=112)])
    }
    assert findings["sharpness"].leaks


def test_declared_cues_are_no_leaks() -> None:
    findings = {
        f.auditor: f
        for f in examine(find("quality-order"), of("quality-order", 40, kind="blur", side=112))
    }
    assert findings["sharpness"].accuracy > 0.5 and not findings["sharpness"].leaks


def test_a_preset_report_has_a_table_and_json() -> None:
    small = TaskMix(
        "small",
        (
            Ingredient("rotation"),
            Ingredient("jigsaw", 1.0, {"rows": 1, "columns": 2}, ("boundary",)),
        ),
    )
    report = audit(SOURCE, small, samples=24)
    assert (
        len(report.findings) == 16
        and "jigsaw:1x2" in report.table()
        and "rotation" in report.table()
    )
    plain = report.json()
    assert plain["passes"] == (not report.leaks) and len(plain["findings"]) == 16
    assert next(
        f for f in report.findings if f.task == "jigsaw:1x2" and f.auditor == "boundary"
    ).intended


def test_border_matching_places_tiles() -> None:
    picture = scene(0, 3).picture()[:360, :480]
    tiles = [
        picture[r * 120 : r * 120 + 120, c * 160 : c * 160 + 160]
        for r in range(3)
        for c in range(3)
    ]
    order = np.random.default_rng(0).permutation(9)
    found = picture_cues.solve_grid([tiles[i] for i in order], 3)
    assert np.array_equal(order[found], np.arange(9))


def test_clips_are_chained_by_their_ends() -> None:
    frames = clip(0, 1).video().read(range(40))
    parts = [frames[8 * i : 8 * i + 8] for i in range(5)]
    order = np.random.default_rng(1).permutation(5)
    assert np.array_equal(order[picture_cues.chained([parts[i] for i in order])], np.arange(5))


def test_auditors_see_no_truth() -> None:
    """Answers do not change when truth values, key, evidence and meta are replaced, sizes kept."""
    from dataclasses import replace

    task, samples = find("jigsaw"), of("jigsaw", 24, rows=2, columns=2)
    ways = [way for way in auditors() if not isinstance(way, MajorityAuditor | MetaAuditor)]
    for way in ways:
        way.fit(task, samples[:12])
    for sample in samples[12:]:
        truth = dict(sample.truth) | {"answer": sorted(sample.truth["answer"])}
        blank = replace(sample, truth=truth, key=None, evidence=(), meta={})
        assert [way.answer(task, blank) for way in ways] == [
            way.answer(task, sample) for way in ways
        ]


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("step-reorder", {}), ("masked-fill", {}), ("np-set-cover", {"show": "text"})],
)
def test_samples_without_pictures_are_audited(name: str, knobs: dict) -> None:
    findings = {f.auditor: f for f in examine(find(name), of(name, 12, **knobs))}
    assert (
        len(findings) == 8
        and not findings["cut"].answered
        and not findings["boundary"].answered
    )


def test_the_page_shows_tables_the_leak_and_a_random_policy(monkeypatch) -> None:
    from mmrl.data.pretext.audit import audit_page

    monkeypatch.setattr(audit_page, "TASKS", (find("rotation"), find("step-reorder")))
    monkeypatch.setattr(
        audit_page,
        "gap_curve",
        lambda source, jitter=False: gap_curve(source, (0.0,), 2, jitter),
    )
    pieces = list(
        audit_page.page_sections(
            SOURCE, [TaskMix("small", (Ingredient("rotation"),), note="A note.")], samples=20
        )
    )
    text = "\n".join(piece for piece, _ in pieces)
    assert not any(leaky for _, leaky in pieces)
    for part in (
        "## small\n\nA note.",
        "| rotation | 25 |",
        "| 0.00 | ",
        "| step-reorder |",
        "No undeclared",
    ):
        assert part in text
    rotation = audit_page.random_policy(find("rotation"), SOURCE, samples=4)
    assert abs(rotation.correct - 0.25) < 0.13 and rotation.bars.count("·") == 3


def test_the_page_holds_every_task() -> None:
    from mmrl.data.pretext.audit.audit_page import everything
    from mmrl.data.pretext.catalogue import TASKS

    assert {part.task for entry in everything() for part in entry.ingredients} == {
        task.name for task in TASKS
    }


def test_the_published_audit_has_every_preset():
    page = (Path(__file__).parents[3] / "docs" / "pretext_audit.md").read_text("utf-8")
    sections = [line.removeprefix("## ") for line in page.splitlines()]
    assert [mix.name for mix in PRESETS if mix.name not in sections] == []
