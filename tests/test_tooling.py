"""The project's own files stay true to one another: locks, requirements, settings, documentation, ignored files."""

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import SecretStr

import audit
from lock import SERVICES, SOURCES, differences, pins
from visionstack.settings import ServiceSettings

ROOT = Path(__file__).resolve().parent.parent

# Who imports what of the project itself.
OWN_MODULES = {"visionstack", *(f"{name}_service" for name in SERVICES)}


def requirements(path: str) -> list[Requirement]:
    """The direct requirements of a `requirements.in`, a pinned file or a `pyproject.toml`."""
    text = (ROOT / path).read_text()
    if path.endswith(".toml"):
        return [Requirement(line) for line in tomllib.loads(text)["project"]["dependencies"]]
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def pinned(lock: str) -> dict[str, Requirement]:
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, pins((ROOT / lock).read_text()))}


def version(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


class TestLocks:
    @pytest.mark.parametrize("lock", SOURCES)
    def test_every_direct_requirement_is_pinned_within_its_bounds(self, lock: str) -> None:
        pins_here = pinned(lock)
        for source in SOURCES[lock]:
            for requirement in requirements(source):
                pin = pins_here.get(canonicalize_name(requirement.name))
                assert pin is not None, f"{requirement} is not in {lock}: run `make lock`"
                assert requirement.specifier.contains(version(pin), prereleases=True), f"{requirement} but {pin}"

    def test_all_locks_agree(self) -> None:
        versions: dict[str, set[str]] = {}
        for lock in SOURCES:
            for name, pin in pinned(lock).items():
                versions.setdefault(name, set()).add(version(pin))
        assert {name: found for name, found in versions.items() if len(found) > 1} == {}

    @pytest.mark.parametrize("lock", SOURCES)
    def test_a_lock_holds_hashes_and_neither_addresses_nor_torch(self, lock: str) -> None:
        text = (ROOT / lock).read_text()
        assert not re.search(r"://|--(extra-)?index|--find-links", text)
        assert not [name for name in pinned(lock) if re.match(r"torch|triton|nvidia-(?!ml-py)|opencv-python$", name)]
        for block in re.split(r"\n(?=\w)", text[text.index("\n\n") if "\n\n" in text else 0 :]):
            if re.match(r"\w", block):
                assert "--hash=sha256:" in block, block

    def test_torch_is_pinned_apart(self) -> None:
        assert sorted(requirement.name for requirement in requirements("common/torch.txt")) == ["torch", "torchvision"]
        assert all(str(requirement.specifier).startswith("==") for requirement in requirements("common/torch.txt"))

    def test_without_an_index_the_check_says_loudly_that_it_did_nothing(self) -> None:
        nowhere = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/", "UV_NO_CACHE": "1", "UV_HTTP_RETRIES": "0"}
        done = subprocess.run(
            [sys.executable, "tools/lock.py", "--check"],
            cwd=ROOT,
            env={**os.environ, **nowhere},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout[:8]) == (0, "SKIPPED:"), done

    def test_a_missing_and_a_needless_pin_are_found(self) -> None:
        now = {"a.txt": "one==1.0 \\\n    --hash=sha256:0\nold==2.0 ; os_name == 'nt' \\\n    --hash=sha256:0\n"}
        assert differences(now, {"a.txt": "one==1.0\nnew==3.0\n"}) == [
            "a.txt: new==3.0 is missing",
            "a.txt: old==2.0 ; os_name == 'nt' is not needed",
        ]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, with their full names; relative ones from `visionstack` only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level and path.parent.name == "visionstack":
                module = f"visionstack.{module}".rstrip(".")
            elif node.level:
                continue
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def foreign_imports(folder: str) -> dict[str, Path]:
    """Each top-level module of others that a folder's code imports, or that part of `visionstack` which it uses."""
    found: dict[str, Path] = {}
    # the programs of bench/peers run in environments of their own, which lie in bench/.envs
    todo = sorted(path for path in (ROOT / folder).rglob("*.py") if not {".envs", "peers"} & {*path.parts})
    own = OWN_MODULES | {
        path.stem
        for name in ("demo", "tests", "tests/support", "tools", "bench")
        for path in (ROOT / name).iterdir()
        if path.suffix in ("", ".py")
    }
    seen = set(todo)
    while todo:
        path = todo.pop()
        for module in imports(path):
            top, _, rest = module.partition(".")
            shared = ROOT / "common/visionstack" / f"{rest.partition('.')[0]}.py"
            if top == "visionstack" and shared.exists() and shared not in seen:
                seen.add(shared)
                todo.append(shared)
            elif top not in sys.stdlib_module_names and top not in own:
                found[top] = path
    return found


@functools.cache
def providers() -> Mapping[str, list[str]]:
    """Which distributions an importable module comes from."""
    return packages_distributions()


def not_required(modules: dict[str, Path], sources: list[str]) -> dict[str, str]:
    """Those modules that come with no direct requirement of the sources, and where they are imported."""
    required = {canonicalize_name(requirement.name) for path in sources for requirement in requirements(path)}
    required |= set(map(canonicalize_name, ("starlette", "pydantic")))  # part of fastapi's interface
    return {
        module: str(path.relative_to(ROOT))
        for module, path in modules.items()
        if not required & {canonicalize_name(name) for name in providers().get(module, [])}
    }


class TestRequirements:
    @pytest.mark.parametrize("service", SERVICES)
    def test_whatever_a_service_imports_is_required_by_it(self, service: str) -> None:
        sources = ["common/pyproject.toml", f"{service}/requirements.in"]
        if service in ("clip", "blip", "yolo"):
            sources.append("common/torch.txt")
        assert not_required(foreign_imports(service), sources) == {}

    @pytest.mark.parametrize("folder", ["demo", "tests", "tools", "bench"])
    def test_whatever_the_rest_imports_is_required_by_something(self, folder: str) -> None:
        sources = ["common/torch.txt", *dict.fromkeys(source for sources in SOURCES.values() for source in sources)]
        assert not_required(foreign_imports(folder), sources) == {}

    def test_only_the_yolo_service_imports_ultralytics(self) -> None:
        """Its licence is the AGPL, which must stay within that folder and process."""
        assert [name for name in SERVICES if "ultralytics" in foreign_imports(name)] == ["yolo"]

    def test_no_service_folder_is_a_package(self) -> None:
        """A package called `clip` would shadow the one that ultralytics looks for."""
        assert not [name for name in SERVICES if (ROOT / name / "__init__.py").exists()]


class Variable(NamedTuple):
    default: str
    meaning: str


def env_example() -> dict[str, Variable]:
    """`NAME=default` or `#NAME=default`, each under one or more lines `# meaning`."""
    found: dict[str, Variable] = {}
    meaning: list[str] = []
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := re.fullmatch(r"#?([A-Z][A-Z0-9_]*)=(.*)", line):
            assert match[1] not in found, f"{match[1]} stands there twice"
            found[match[1]] = Variable(match[2], " ".join(meaning))
            meaning = []
        else:
            assert not line or line.startswith("# "), f"neither a variable nor its meaning: {line}"
            meaning = [*meaning, line[2:]] if line else []
    return found


def as_text(default: Any) -> str:
    """A default as one would write it into `.env`."""
    if default is None:
        return ""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, tuple):
        return ",".join(map(as_text, default))
    if isinstance(default, frozenset):
        return ",".join(map(as_text, sorted(default)))
    if isinstance(default, bool):
        return str(default).lower()
    return str(default)


def settings_classes() -> dict[str, type[ServiceSettings]]:
    found = {}
    for name in SERVICES:
        module = importlib.import_module(f"{name}_service.settings")
        found[name] = next(
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, ServiceSettings) and value.__module__ == module.__name__
        )
    return found


def settings_defaults() -> Iterator[tuple[str, str, str]]:
    """Service, variable and default of everything that a service reads."""
    for service, settings_class in settings_classes().items():
        for name, field in settings_class.model_fields.items():
            yield service, name.upper(), as_text(field.get_default(call_default_factory=True))


class TestSettings:
    def test_every_setting_stands_in_env_example_with_its_default(self) -> None:
        """Where a service has another default than the rest, the meaning says so: `blip: 8`."""
        listed = env_example()
        wrong = {
            f"{service} {name}": (default, listed.get(name))
            for service, name, default in settings_defaults()
            if name not in listed
            or (listed[name].default != default and f"{service}: {default}" not in listed[name].meaning)
        }
        assert wrong == {}

    def test_every_variable_of_env_example_is_read_by_something(self) -> None:
        readers = [*ROOT.glob("tools/*.py"), *ROOT.glob("tools/install"), *ROOT.glob("docker-compose*.yml")]
        text = "\n".join(path.read_text() for path in readers)
        others = env_example().keys() - {name for _, name, _ in settings_defaults()}
        assert [name for name in sorted(others) if not re.search(rf"\b{name}\b", text)] == []

    def test_every_variable_has_a_meaning(self) -> None:
        assert [name for name, variable in env_example().items() if not variable.meaning] == []

    def test_the_readme_states_no_other_variables_and_defaults(self) -> None:
        stated = dict(readme_variables((ROOT / "README.md").read_text()))
        listed = env_example()
        assert len(stated) > 20
        wrong = {
            name: default
            for name, default in stated.items()
            if name not in listed or default not in (None, listed[name].default)
        }
        assert wrong == {}


def readme_variables(text: str) -> Iterator[tuple[str, str | None]]:
    """Variable and default of each table row ``| `NAME` | `default` | meaning |``; None for a default in words."""
    for line in text.splitlines():
        if match := re.match(r"\| `([A-Z][A-Z0-9_]*)` \|(.*?)\|", line):
            literal = re.fullmatch(r"`(.*)`|", match[2].strip())
            yield match[1], (literal[1] or "") if literal else None


class TestAudit:
    def test_a_known_weakness_is_found_among_others(self) -> None:
        weakness = {"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}
        answer = {
            "dependencies": [
                {"name": "a", "version": "1.0", "vulns": [weakness, weakness | {"fix_versions": []}]},
                {"name": "b", "version": "1.0", "vulns": []},
                {"name": "c", "skip_reason": "not found"},
            ],
            "fixes": [],
        }
        assert audit.read(answer) == audit.Audit(
            found={"a==1.0": ["PYSEC-1, mended in 1.1", "PYSEC-1, mended in no version yet"]},
            not_asked={"c": "not found"},
        )

    def test_without_an_answer_nothing_is_audited_and_nothing_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")  # where nobody listens
        result = audit.audit(["certifi==2026.1.1"])
        assert result.found == {}
        assert list(result.not_asked) == ["certifi==2026.1.1"]

    @pytest.mark.parametrize(
        ("result", "status", "line"),
        [
            (audit.Audit(), 0, "0 with known weaknesses"),
            (audit.Audit(not_asked={"fastapi": "nobody answers"}), 0, "NOT AUDITED: 1 of"),
            (audit.Audit(found={"fastapi==0": ["PYSEC-1"]}), 1, "fastapi==0 (): PYSEC-1"),
            (audit.Audit(found={"fastapi==0": ["PYSEC-1"]}, not_asked={"a": "b"}), 1, "NOT AUDITED: 1 of"),
        ],
    )
    def test_only_a_finding_fails(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        result: audit.Audit,
        status: int,
        line: str,
    ) -> None:
        asked: list[str] = []

        def answer(packages: list[str]) -> audit.Audit:
            asked.extend(packages)
            return result

        monkeypatch.setattr(audit, "audit", answer)
        assert audit.main() == status
        assert line in capsys.readouterr().out
        assert {pin.partition("==")[0] for pin in asked} > {"fastapi", "torch", "transformers", "ultralytics"}


def test_readme_rows_are_understood() -> None:
    text = "| variable | default | meaning |\n|---|---|---|\n| `A` | `x,y` | |\n| `B_C` | set it | |\n| `D` | | so |\n"
    assert list(readme_variables(text)) == [("A", "x,y"), ("B_C", None), ("D", "")]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_make_command_in_the_documentation_exists() -> None:
    pages = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tools/*.py"))]
    assert pages
    for page in pages:
        named = set(re.findall(r"(?:`|^\s*)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE))
        assert named <= make_targets(), f"{page.relative_to(ROOT)} names {named - make_targets()}"


@pytest.mark.parametrize("path", [".env", "data/", ".venv"])
def test_secrets_and_data_are_kept_out_of_git_and_of_images(path: str) -> None:
    def patterns(name: str) -> set[str]:
        return {line.strip("/").removeprefix("**/") for line in (ROOT / name).read_text().splitlines()}

    assert path.strip("/") in patterns(".gitignore")
    assert path.strip("/") in patterns(".dockerignore")
