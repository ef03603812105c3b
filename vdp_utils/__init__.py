"""Tools of the visual-dependency study (after arXiv 2410.19732): see README.md."""

import os
import sys

# Progress bars are widgets in JupyterLab. Where papermill or nbval runs a notebook they are text,
# which goes to stderr: widgets would be among its outputs, different in every run.
if "ipykernel" in sys.modules and "JPY_SESSION_NAME" not in os.environ:
    import tqdm

    sys.modules.setdefault("tqdm.autonotebook", tqdm)
