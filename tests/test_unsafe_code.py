"""What no code of the stack may do, read from its source: unpickle, run a stranger's code, start a shell."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What runs in production, and what starts it.
FOLDERS = ("common/visionstack", "gateway", "clip", "blip", "yolo", "qdrant", "client", "tools", "deploy")

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not {"build", ".venv", "node_modules"} & set(path.parts)]


def name_of(node: ast.expr) -> str:
    """`torch.load` of the expression that is called."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keywords(call: ast.Call) -> dict[str, object]:
    return {
        word.arg: word.value.value if isinstance(word.value, ast.Constant) else None
        for word in call.keywords
        if word.arg
    }


def offences(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        yield from (f"imports {module}" for module in modules if module.partition(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Call):
            yield from _offences_of_a_call(name_of(node.func), keywords(node))
        if isinstance(node, ast.Constant) and node.value in ("trust_remote_code=True", "weights_only=False"):
            yield f"holds {node.value}"


def _offences_of_a_call(name: str, given: dict[str, object]) -> Iterator[str]:
    if given.get("trust_remote_code") not in (None, False):
        yield "trusts remote code"
    if name == "torch.load" and given.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle") is not False:
        yield "np.load without allow_pickle=False"
    if name.endswith("torch_safe_load") and given.get("safe_only") is not True:
        yield "torch_safe_load without safe_only=True"
    if name in EVALUATORS or name == "yaml.load":
        yield f"calls {name}"
    if given.get("shell") not in (None, False) or name in ("os.system", "os.popen"):
        yield f"starts a shell with {name}"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import joblib.externals", "torch.load(path)",
        "torch.load(path, weights_only=False)", "np.load(file)", "model(trust_remote_code=True)", "eval(text)",
        "subprocess.run(line, shell=True)", "os.system(line)", "torch_safe_load(path, safe_only=False)", "yaml.load(x)",
    ],
)  # fmt: skip
def test_an_offence_is_seen(text: str) -> None:
    assert list(offences(text))


@pytest.mark.security
def test_no_code_of_the_stack_unpickles_or_runs_what_others_wrote(
    record_property: Callable[[str, object], None],
) -> None:
    files = sources()
    found = [f"{path.relative_to(ROOT)}: {offence}" for path in files for offence in offences(path.read_text("utf-8"))]
    assert len(files) > 50
    record_property("Code/unpickling, remote code, shells/files read", len(files))
    record_property("Code/unpickling, remote code, shells/found", len(found))
    assert found == []
