"""`python -m vdp_utils.bench`: ratios side by side in one run, medians of alternating repeats."""

import argparse
import time
from statistics import median

import torch

from vdp_utils import prompts
from vdp_utils.lvlm import LVLM, load_lvlm
from vdp_utils.measure import condition, measure_sample, prefill


def alternate(repeats: int, **tasks) -> dict[str, float]:
    """Median seconds of each task, run in turn after one warm-up each."""
    for task in tasks.values():
        task()
    seconds = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def shared_prefix_ratio(lvlm: LVLM, length: int = 1024, repeats: int = 5) -> dict[str, float]:
    """Seconds for six questions behind `length` tokens, each prompt alone and sharing a cache."""
    sample = next(s for s in prompts.presence_samples("evaluation", 20) if len(s.questions) == 6)
    one = condition(lvlm, "other", length)
    times = alternate(repeats, alone=lambda: measure_sample(lvlm, sample, one, share=False),
                      shared=lambda: measure_sample(lvlm, sample, one))
    return times | {"ratio": times["alone"] / times["shared"]}


@torch.no_grad()
def prefill_seconds(lvlm: LVLM, length: int = 1024, repeats: int = 5) -> float:
    """Median seconds to prefill image and `length` context tokens."""
    sample = prompts.presence_samples("evaluation", 1)[0]
    prefix = prompts.shared_prefix(lvlm, sample, "other", length)
    return alternate(repeats, prefill=lambda: prefill(lvlm, prefix))["prefill"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vdp_utils.bench", description=__doc__)
    parser.add_argument("--model", default="embedded-s")
    options = parser.parse_args()
    load_lvlm(options.model)  # converts the base model where that was not done yet
    started = time.perf_counter()
    lvlm = load_lvlm(options.model)
    print(f"{options.model}, {torch.get_num_threads()} threads")
    print(f"load                                 {time.perf_counter() - started:.2f} s")
    print(f"prefill, 1024 context tokens         {prefill_seconds(lvlm):.2f} s")
    times = shared_prefix_ratio(lvlm)
    print(f"6 questions at 1024, each alone      {times['alone']:.2f} s")
    print(f"6 questions at 1024, shared prefix   {times['shared']:.2f} s ({times['ratio']:.1f}x)")


if __name__ == "__main__":
    main()
