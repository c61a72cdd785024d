"""The guides run, and their notebooks are the same."""

import importlib.util
import pathlib
import runpy
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "guides").glob("*.ipynb"))


@pytest.fixture(scope="module")
def build():
    pytest.importorskip("nbformat")
    path = ROOT / "guides" / "build.py"
    specification = importlib.util.spec_from_file_location("build", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder `guides` to write to, with the repository around it."""
    for name in ("benchmarks", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "guides").mkdir()
    monkeypatch.chdir(tmp_path / "guides")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("GUIDES_QUICK", "1")
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


# One backend: up to 15 seconds each, and the guides say it where the backend
# matters.
@pytest.mark.tensorflow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", NAMES)
def test_guide_runs(name):
    pytest.importorskip("matplotlib")
    runpy.run_path(str(ROOT / "guides" / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", NAMES)
def test_notebook_has_the_cells_of_its_guide(name, build):
    path = ROOT / "guides" / f"{name}.py"
    assert path in build.GUIDES
    notebook = build.nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    build.nbformat.validate(notebook)
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells == build.cells_of(path), (
        f"run: python guides/build.py --run {name}"
    )
    assert notebook == build.notebook_of(path)
    counts = [
        cell.execution_count
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    assert counts == list(range(1, len(counts) + 1)), (
        f"run: python guides/build.py --run {name}"
    )


def test_every_guide_is_a_notebook(build):
    assert {path.stem for path in build.GUIDES} == set(NAMES)


def test_cells(build, tmp_path):
    path = tmp_path / "guide.py"
    path.write_text(
        '"""\nTitle: A\nDescription: B\n"""\n\n"""\n## C\n"""\n\nx = """no"""\n'
        '\n\ndef f():\n    """Part of the code."""\n\n\n"""\nD\n"""\n'
    )
    assert build.cells_of(path) == [
        ("markdown", "# A\n\nB"),
        ("markdown", "## C"),
        ("code", 'x = """no"""\n\n\ndef f():\n    """Part of the code."""'),
        ("markdown", "D"),
    ]
    # Outputs stay with the cell that made them, until the first change.
    path.write_text(path.read_text() + "y = 1\n")
    notebook = build.notebook_of(path)
    for number in (2, 4):
        notebook.cells[number].outputs = [
            build.nbformat.v4.new_output("stream", text="out")
        ]
    build.nbformat.write(notebook, path.with_suffix(".ipynb"))
    path.write_text(path.read_text().replace("## C", "## E"))
    again = build.notebook_of(path)
    for number in (2, 4):
        assert again.cells[number].outputs == notebook.cells[number].outputs
    path.write_text(path.read_text().replace("no", "yes"))
    again = build.notebook_of(path)
    assert again.cells[2].outputs == again.cells[4].outputs == []
