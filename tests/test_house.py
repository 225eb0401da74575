"""The house rules that a machine can check: floors, sizes, lean start-up, nothing executed from a checkpoint."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qkspec"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    ("errors", "clean", "ranges", "__init__"),
    ("qk", "latent", "spectrum", "spectrum_torch", "attention", "readings", "theorem", "engine"),
    ("energy", "metrics", "trajectory", "courses", "curve", "events", "policy", "baseline", "optim", "simulate"),
    ("checkpoints", "losses"),
    ("layouts",),
    ("analysis", "judging", "activations", "embeddings", "maps", "given", "measuring", "streaming", "cache", "terms"),
    ("gate", "comparison", "audit"),
    ("reports", "watch", "callbacks", "train"),
    ("cli", "running", "tokens", "__main__"),
)
MAX_LINES = 400


def floor_of(module):
    """The floor of a dotted module name such as qkspec.layouts.find."""
    parts = module.split(".")
    room = parts[1] if len(parts) > 1 else "__init__"
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"{module} has no floor: add its room to FLOORS and to the picture in CONTRIBUTING.md")


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(path, *, outside_functions=False):
    """Every qkspec or other module that a file imports, dotted; TYPE_CHECKING blocks are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    stack, found = list(tree.body), []
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if outside_functions and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" if node.module == "qkspec" else node.module for alias in node.names]
        stack.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_come_from_the_same_floor_or_below(path):
    module = module_of(path)
    if module == "qkspec.__init__":
        return  # names loaded on first use, from everywhere
    own = floor_of(module)
    room = module.split(".")[1]
    for name in imports(path):
        if not name.startswith("qkspec.") or name == "qkspec.__version__":
            continue
        floor = floor_of(name)
        assert floor <= own, f"{module} (floor {own}) imports {name} (floor {floor})"
        if own == 7 and floor == 7:
            assert name.split(".")[1] == room, f"{module} and {name} share a floor but not a room: they meet on disk"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_in_a_checkpoint_is_ever_executed(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        assert name not in {"eval", "exec", "pickle.load", "pickle.loads", "torch.jit.load", "__import__"}, name
        assert not any(k.arg in {"allow_pickle", "shell"} for k in node.keywords), ast.unparse(node)
        if name == "torch.load":
            assert path.name == "torchfile.py", f"{path}: torch.load has one place"
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert keywords.get("weights_only") == "True", ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_unfinished_marks(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"TODO|FIXME|raise NotImplementedError|coming soon", text)


def loaded(*command):
    """Modules that a command line imports."""
    code = "import sys; from qkspec.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    return set(done.stderr.split())


def test_help_imports_nothing_heavy():
    assert not loaded("--help") & {"torch", "matplotlib", "scipy", "numpy", "transformers", "plotly", "jinja2"}


@pytest.mark.parametrize("command", ["analyze", "gate", "inspect"])
def test_safetensors_on_a_cpu_never_import_torch(command, sample):
    modules = loaded(command, str(sample))
    assert "qkspec.checkpoints.safetensors" in modules
    assert not modules & {"torch", "matplotlib", "transformers"}
