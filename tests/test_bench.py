"""The benchmark's own arithmetic: ratios within a repetition, verdicts, and an exit status that no excuse changes."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import run
from clip_peers import PEERS
from figures import (
    Figure,
    NotMeasured,
    best_of,
    growth,
    percentile,
    ratios,
    steepest,
)
from known_limits import read_limits
from plots import draw
from record import Record
from report import report, summary
from targets import TARGETS, Target, Verdict, exit_status, judge

BENCH = Path(run.__file__).resolve().parent


def target(sense: str, bound: float, values: Sequence[float] | None) -> Target:
    def of(samples: object) -> Sequence[float]:
        if values is None:
            raise NotMeasured("clip.service.32.per_s")
        return values

    return Target(1, "what", "at least" if sense == "at least" else "at most", bound, "x", of)


class TestFigures:
    def test_a_ratio_is_taken_within_each_repetition(self) -> None:
        """A machine twice as slow in the second repetition changes both sides of it, and the ratio not at all."""
        service, peer = [90.0, 45.0, 96.0], [30.0, 15.0, 30.0]
        assert ratios(service, peer) == [3.0, 3.0, 3.2]
        assert Figure.of(ratios(service, peer)) == Figure(3.0, 3.0, 3.2, 3)

    def test_repetitions_that_do_not_pair_are_refused(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            ratios([1.0, 2.0], [1.0])

    def test_the_bound_is_the_best_of_each_repetition(self) -> None:
        assert best_of([3.0, 1.0], [2.0, 4.0]) == [3.0, 4.0]
        assert best_of([3.0, 1.0], [2.0, 4.0], lower_is_better=True) == [2.0, 1.0]

    @pytest.mark.parametrize(("percent", "value"), [(50, 10.0), (95, 19.0), (100, 20.0), (1, 1.0)])
    def test_a_percentile_is_a_value_that_was_measured(self, percent: int, value: float) -> None:
        assert percentile([float(n) for n in range(20, 0, -1)], percent) == value

    def test_the_steepest_step_is_found_in_any_order(self) -> None:
        assert steepest([(8, 16.0), (1, 2.0), (2, 4.0)]) == 1.0
        assert steepest([(1, 1.0), (2, 1.5), (4, 9.0)]) == 3.0

    def test_growth_leaves_out_the_warming_up(self) -> None:
        assert growth([10.0, 50.0, 100.0, 100.0, 100.0, 100.0, 110.0, 110.0]) == 1.1
        assert growth([10.0, 500.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0]) == 1.0


class TestVerdicts:
    @pytest.mark.parametrize(
        ("sense", "values", "met"),
        [
            ("at least", [1.0, 2.0, 2.0], True),
            ("at least", [1.9, 1.9, 5.0], False),
            ("at most", [2.0, 2.0, 9.0], True),
            ("at most", [2.1, 2.1, 0.1], False),
        ],
    )
    def test_the_median_decides(self, sense: str, values: list[float], met: bool) -> None:
        (verdict,) = judge([target(sense, 2.0, values)], {})
        assert (verdict.met, exit_status([verdict])) == (met, 0 if met else 1)

    def test_what_was_not_measured_is_missed(self) -> None:
        (verdict,) = judge([target("at least", 2.0, None)], {})
        assert not verdict.met
        assert exit_status([verdict]) == 1
        assert "clip.service.32.per_s" in summary([verdict], {})

    def test_one_miss_fails_the_run_whatever_is_known_of_it(self) -> None:
        good, bad = judge([target("at least", 2.0, [3.0]), target("at least", 4.0, [3.0])], {})
        assert exit_status([good, bad]) == 1
        text = summary([good, bad], {bad.target.key: "a reason"})
        assert "1 of 2 met" in text
        assert re.search(r"^MISSED .*reason written", text, re.MULTILINE)

    def test_no_verdict_at_all_is_no_success(self) -> None:
        assert exit_status([]) == 1


class TestTargets:
    def test_every_target_of_the_list_is_there(self) -> None:
        assert {target.number for target in TARGETS} == set(range(1, 14))

    def test_keys_are_unique_and_every_written_reason_has_its_target(self) -> None:
        keys = [target.key for target in TARGETS]
        assert len(set(keys)) == len(keys)
        assert set(read_limits()) <= set(keys)

    @pytest.mark.parametrize("wanted", TARGETS, ids=lambda wanted: wanted.key)
    def test_every_target_has_its_measurement(self, wanted: Target) -> None:
        """Each quantity that a target reads is written by a measurement, under that very name."""
        asked: list[str] = []

        class Everything(dict[str, list[float]]):
            def get(self, name: str, default: object = None) -> list[float]:
                asked.append(name)
                return [1.0, 1.0]

        assert wanted.values(Everything())
        patterns = written_names()
        assert asked
        assert [name for name in asked if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


def written_names() -> set[str]:
    """What the measuring modules pass to `add` and `add_load`, as patterns: any word for what stands in braces."""
    found = set()
    for path in BENCH.glob("measure_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) == "part":
                endings = {"add": [""], "add_load": ["per_s", "p50_ms", "p95_ms"]}.get(node.func.attr, [])
                for ending in endings:
                    found.add(pattern_of(node.args[0]) + (rf"\.{ending}" if ending else ""))
    assert len(found) > 30
    return found


def pattern_of(argument: ast.expr) -> str:
    if isinstance(argument, ast.Constant):
        return re.escape(str(argument.value))
    assert isinstance(argument, ast.JoinedStr), ast.unparse(argument)
    return "".join(
        re.escape(str(part.value)) if isinstance(part, ast.Constant) else pattern_of_name(part)
        for part in argument.values
    )


def pattern_of_name(part: ast.expr) -> str:
    assert isinstance(part, ast.FormattedValue)
    if ast.unparse(part.value) == "peer.name":
        return "(" + "|".join(re.escape(name) for name, _ in PEERS) + ")"
    return r"[\w-]+"


class TestRecord:
    HEADER = {"versions": {"torch": "2"}, "boot": "1", "quick": False}  # noqa: RUF012
    PART = {"began": 0.0, "samples": {"a": [1.0]}, "missing": {}, "facts": {}}  # noqa: RUF012

    def put(self, path: Path, began: float) -> None:
        Record.open(path, self.HEADER).put("clip", self.PART | {"began": began})

    def test_parts_of_one_run_meet(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.time", lambda: 1000.0)
        self.put(tmp_path / "run.json", 900.0)
        record = Record.open(tmp_path / "run.json", self.HEADER)
        record.put("yolo", self.PART | {"samples": {"b": [2.0]}, "began": 1000.0, "missing": {"peer": "why"}})
        assert Record.open(tmp_path / "run.json", self.HEADER).samples == {"a": [1.0], "b": [2.0]}
        assert Record.open(tmp_path / "run.json", self.HEADER).missing == {"peer": "why"}

    @pytest.mark.parametrize("change", [{"versions": {"torch": "3"}}, {"boot": "2"}, {"quick": True}])
    def test_numbers_of_another_run_are_left_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
    ) -> None:
        monkeypatch.setattr("time.time", lambda: 1000.0)
        self.put(tmp_path / "run.json", 900.0)
        assert Record.open(tmp_path / "run.json", self.HEADER | change).parts == {}
        assert list(Record.open(tmp_path / "run.json", self.HEADER).parts) == ["clip"]

    def test_a_run_of_yesterday_is_another(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.time", lambda: 100_000.0)
        self.put(tmp_path / "run.json", 1000.0)
        assert Record.open(tmp_path / "run.json", self.HEADER).parts == {}


def test_a_bare_verdict_shows_its_range() -> None:
    verdict = Verdict(target("at least", 0.9, [0.95]), Figure(0.95, 0.9, 1.0, 3))
    assert "0.95 x (0.9 to 1)" in summary([verdict], {})


def test_pictures_never_repeat() -> None:
    """A server that remembers results by their pixels must compute each of them."""
    from photos import photo

    seen = {photo(64, 48, seed).tobytes() for seed in range(12)}
    assert len(seen) == 12
    assert photo(64, 48, 3).tobytes() in seen


def complete_record(path: Path) -> Record:
    """A run of which every part was measured, with made-up numbers."""
    header = {
        "cpu": "a processor", "cores": 2, "flags": ["avx2"], "memory_gb": 8, "system": "Linux",
        "versions": {"torch": "2.0"}, "boot": "1", "quick": False,
    }  # fmt: skip
    loads = [f"clip.{name}.{n}" for name in ("service", "bare-torch", "bare-own", "LitServe") for n in (1, 8, 32)]
    loads += ["yolo.service", "yolo.service.1", "yolo.openvino", "yolo.bare-torch", "yolo.bare-own", "yolo.predict"]
    loads += ["blip.service.1x1", "blip.service.3x1", "blip.service.1x4", "blip.generate.1", "blip.generate.3"]
    loads += [f"gateway.{way}.{n}" for way in ("gateway", "direct") for n in (1, 8)]
    loads += [f"all.{path}" for path in ("all", "clip", "blip", "yolo")]
    loads += [f"shared.{name}.{how}" for name in ("clip", "blip", "yolo") for how in ("alone", "together", "openvino")]
    loads += [f"vectors.{points}.written" for points in (1000, 10_000, 100_000)]
    loads += ["vectors.100000.upsert", "vectors.by_picture.search", "vectors.by_picture.embed"]
    loads += [f"sizes.picture.{size}" for size in (1, 8, 33)]
    loads += [f"sizes.in_flight.{n}" for n in (1, 2, 4, 8, 16, 32, 64)]
    samples = {f"{load}.{what}": [1.0, 1.2, 1.1] for load in loads for what in ("per_s", "p50_ms", "p95_ms")}
    samples |= {f"decode.{kind}.{what}_cpu_ms": [12.0, 13.0, 14.0]
                for kind in ("jpeg", "webp") for what in ("gateway", "inputs", "naive")}  # fmt: skip
    samples |= {f"memory.{name}.{what}": [100.0, 120.0, 110.0, 115.0]
                for name in ("gateway", "clip", "blip", "yolo", "qdrant")
                for what in ("ready_s", "rest_mb", "load_mb")}  # fmt: skip
    service = {"model": "m", "device": "cpu", "precision": "fp32"}
    facts: dict[str, dict[str, object]] = {name: {} for name in run.PARTS if name not in ("million", "hour")}
    facts["clip"] = {"service": service, "peers": {"LitServe": {"litserve": "0.2"}}, "gemm_gflops": [60.0, 61.0]}
    facts["yolo"] = {"service": service}
    facts["blip"] = {"service": service, "tokens": 20}
    facts["gateway"] = {"picture_kb": 300}
    facts["decode"] = {"jpeg_mb": 2.0, "webp_mb": 1.0}
    facts["vectors"] = {"index_built_in_s": 60}
    facts["sizes"] = {f"{size} megapixels": "1.0 MB" for size in (1, 8, 33)}
    facts["memory"] = {"minutes": 4, "sample_every_s": 15}
    record = Record.open(path, header)
    for name, facts_of_part in facts.items():
        record.put(name, {
            "commit": "c" * 40, "changed_files": [],
            "began": 1000.0, "ended": 1100.0, "load_before": 0.1, "cores_used_by_others": 0.02, "facts": facts_of_part,
            "samples": {key: values for key, values in samples.items() if key.startswith(f"{name}.")},
            "missing": {"naive FastAPI": "no wheel for it"} if name == "clip" else {},
        })  # fmt: skip
    return record


def test_the_report_has_every_verdict_every_miss_and_every_plot(tmp_path: Path) -> None:
    record = complete_record(tmp_path / "run.json")
    hour = Record.open(tmp_path / "hour.json", record.header)
    verdicts = judge(TARGETS, record.samples)
    missed = [verdict for verdict in verdicts if not verdict.met]
    reasons = {missed[0].target.key: "the reason that was found"}
    text = report(record, hour, verdicts, reasons, draw(record, hour, tmp_path / "plots"))
    assert all(text.count(f"| {verdict.target.what} |") == 1 for verdict in verdicts)
    assert text.count("**missed**") == len(missed) >= 3
    assert "the reason that was found" in text
    assert text.count("no reason is written yet") == len(missed) - 1
    assert "naive FastAPI could not be measured here: no wheel for it" in text
    addresses = re.findall(r"\]\((plots/\w+\.svg)\)", text)
    assert len(addresses) == 4
    assert all((tmp_path / address).stat().st_size > 1000 for address in addresses)

    assert "dddddddddddd" not in text
    assert "| qdrant | 112 (100 to 120) | 112 (100 to 120) | 120 | not measured |" in text
    grown = {
        f"hour.{name}.{what}": values
        for name in ("gateway", "clip", "blip", "yolo", "qdrant")
        for what, values in (
            ("ready_s", [7.0]),
            ("rest_mb", [90.0]),
            ("load_mb", [100.0] * 60),
            ("load_own_mb", [50.0] * 30 + [55.0] * 30),
        )
    }
    facts = {"minutes": 60, "sample_every_s": 60}
    part = {"commit": "d" * 40, "began": 1000.0, "ended": 4600.0}
    hour.put("hour", part | {"samples": grown, "missing": {}, "facts": facts})
    text = report(record, hour, verdicts, reasons, draw(record, hour, tmp_path / "plots"))
    assert "| the hour of load | 1970-01-01 00:16 UTC, commit dddddddddddd, a processor, 2 cores |" in text
    assert "most in 60 min of load" in text
    assert "| qdrant | 7.00 | 90.0 | 100 | 1.10 |" in text
