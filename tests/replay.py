"""A notebook's code cells run one by one in this process, where a kernel would prove no more."""

import ast
import contextlib
import io

import nbformat
import pandas as pd
from IPython.lib.pretty import pretty
from matplotlib import pyplot as plt


def code(path):
    """The code cells of the notebook at `path`."""
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def shown(cell):
    """What a cell shows as it is stored: what it prints, and its last value as plain text."""
    printed = "".join(out["text"] for out in cell.outputs if out.get("name") == "stdout")
    values = [out["data"]["text/plain"] for out in cell.outputs
              if out.output_type == "execute_result"]
    return printed, values


def play(path, **given):
    """Yield (cell, what it shows now, in the form of `shown`) of each code cell in turn.

    The parameters take the values of `given`. What a cell draws is closed behind it.
    """
    space = {"__name__": "__main__"}
    for number, cell in enumerate(code(path)):
        lines = ast.parse(cell.source).body
        last = lines.pop() if isinstance(lines[-1], ast.Expr) else None
        where = f"{path.name}, code cell {number}"
        with (contextlib.redirect_stdout(io.StringIO()) as printed,
              pd.option_context("display.max_columns", 20)):  # as in a kernel
            exec(compile(ast.Module(lines, []), where, "exec"), space)
            value = last and eval(compile(ast.Expression(last.value), where, "eval"), space)
            text = [] if value is None else [pretty(value)]
        if "parameters" in tags(cell):
            assert set(given) <= set(space)
            space |= given
        yield cell, (printed.getvalue(), text)
        plt.close("all")
