"""Turns the guides into notebooks.

A guide is a Python file in the manner of keras.io: prose in strings by
themselves, code in between. Its notebook has the same cells, and the outputs
of a real run.

    python guides/build.py                        # cells; outputs stay
    python guides/build.py --run getting_started  # runs it in full
"""

import argparse
import ast
import pathlib

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = pathlib.Path(__file__).parent
GUIDES = tuple(
    FOLDER / f"{name}.py"
    for name in (
        "getting_started",
        "bring_your_own_model",
        "how_it_works",
        "choosing_a_field_and_a_recipe",
        "backends_and_devices",
        "deploying",
    )
)
METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


def cells_of(path):
    """The cells of a guide: list of `("markdown" or "code", source)`."""
    text = path.read_text()
    lines = text.splitlines()
    cells, last = [], 0
    for node in ast.parse(text).body:
        value = getattr(node, "value", None)
        if (
            isinstance(node, ast.Expr)
            and isinstance(value, ast.Constant)
            and isinstance(value.value, str)
        ):
            cells.append(("code", "\n".join(lines[last : node.lineno - 1])))
            cells.append(("markdown", value.value))
            last = node.end_lineno
    cells.append(("code", "\n".join(lines[last:])))
    cells = [(kind, source.strip()) for kind, source in cells]
    (_, header), *others = [cell for cell in cells if cell[1]]
    return [("markdown", _title(header)), *others]


def _title(header):
    """The lines `Title: ...` and `Description: ...` as Markdown."""
    entries = dict(line.split(": ", 1) for line in header.splitlines())
    return f"# {entries['Title']}\n\n{entries['Description']}"


def notebook_of(path):
    """The notebook of a guide, with the outputs that still belong to it.

    Those of a cell depend on all code before it: from the first change on
    there are none.
    """
    notebook = new_notebook(metadata=METADATA)
    before = []
    target = path.with_suffix(".ipynb")
    if target.exists():
        before = [
            cell
            for cell in nbformat.read(target, as_version=4).cells
            if cell.cell_type == "code"
        ]
    for number, (kind, source) in enumerate(cells_of(path)):
        # Names that stay the same keep the difference of two versions small.
        name = f"cell-{number}"
        if kind == "markdown":
            cell = new_markdown_cell(source, id=name)
        else:
            cell = new_code_cell(source, id=name)
            if before and before[0].source == source:
                same = before.pop(0)
                cell.execution_count = same.execution_count
                cell.outputs = same.outputs
            else:
                before = []
        notebook.cells.append(cell)
    return notebook


def run(notebook):
    """Runs a notebook; keeps what it prints and draws."""
    from nbclient import NotebookClient

    NotebookClient(
        notebook,
        timeout=None,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": FOLDER}},
    ).execute()
    notebook.metadata = METADATA
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if _is_kept(each)]


def _is_kept(output):
    """Whether an output is no warning and no object at some address."""
    if output.output_type == "execute_result":
        return "image/png" in output.data
    if output.output_type == "stream":
        # TensorFlow names its temporary folders.
        lines = output.text.splitlines(keepends=True)
        lines = [x for x in lines if not x.startswith("INFO:tensorflow:")]
        output.text = "".join(lines)
        return output.name == "stdout" and lines
    return True


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--run",
        nargs="+",
        default=[],
        choices=[path.stem for path in GUIDES],
        help="guides to run in full, for their outputs",
    )
    options = parser.parse_args(arguments)
    for path in GUIDES:
        if options.run and path.stem not in options.run:
            continue
        notebook = notebook_of(path)
        if path.stem in options.run:
            run(notebook)
        nbformat.validate(notebook)
        nbformat.write(notebook, path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
