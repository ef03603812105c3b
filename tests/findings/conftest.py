"""For every finding's tests: fewer resamples than in the study, and no figure left open."""

import pytest
from matplotlib import pyplot as plt

from vdp_utils import stats


@pytest.fixture(autouse=True, scope="module")
def fewer_resamples():
    """For a module's own fixtures too, so before them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "RESAMPLES", 999)
        yield


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")
