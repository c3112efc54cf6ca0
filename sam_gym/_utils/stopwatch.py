"""Where the time of something long goes: seconds of its parts, which may be stored and taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Seconds, steps, and seconds of parts; "rollout/environment" is a part of the part "rollout".

    Args:
        known: Where they are written to, a JSON-able dict; what it holds already is added to.

    Example:
        >>> watch = Stopwatch({"steps": 300, "seconds": 10.0, "parts": {"rollout": 6.0, "rollout/environment": 5.0}})
        >>> watch.rest("learning")
        >>> watch.line("PPO", "steps")
        'PPO: 300 steps in 10 s, 30 a second: rollout 60 % (50/s), of which environment 50 %; learning 40 % (75/s)'
    """

    def __init__(self, known: dict[str, Any]) -> None:
        self.known = known
        for name, nothing in (("steps", 0), ("seconds", 0.0), ("parts", {})):
            known.setdefault(name, nothing)

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by the name of the part."""
        return self.known["parts"]

    def add(self, part: str, seconds: float) -> None:
        """Add to a part."""
        self.parts[part] = self.parts.get(part, 0.0) + seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """While it lasts, the whole runs."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.known["seconds"] += time.perf_counter() - started

    @contextmanager
    def of(self, owner: Any, method: str, part: str) -> Iterator[None]:
        """While it lasts, what `owner.method()` takes is counted as a part."""
        plain, own = getattr(owner, method), vars(owner).get(method)

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return plain(*arguments, **named)
            finally:
                self.add(part, time.perf_counter() - started)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            if own is None:
                delattr(owner, method)
            else:
                setattr(owner, method, own)

    def rest(self, part: str) -> None:
        """Call all that no other part accounts for so."""
        others = sum(seconds for name, seconds in self.parts.items() if "/" not in name and name != part)
        self.parts[part] = max(0.0, self.known["seconds"] - others)

    def summary(self) -> dict[str, Any]:
        """All of it, and what follows: steps a second, and the parts' shares of the time."""
        steps, whole = self.known["steps"], max(self.known["seconds"], 1e-9)
        shares = {name: round(seconds / whole, 3) for name, seconds in self.parts.items()}
        return {**self.known, "steps_a_second": round(steps / whole, 2), "shares": shares}

    def line(self, name: str, unit: str) -> str:
        """What to print: steps, seconds and rate, then the share of the time and the rate of each part that counts."""
        steps, whole = self.known["steps"], max(self.known["seconds"], 1e-9)
        told = []
        for part, seconds in self.parts.items():
            if "/" in part or seconds < 0.005 * whole:
                continue
            told.append(f"{part} {_percent(seconds / whole)} ({_rate(steps / max(seconds, 1e-9))}/s)")
            for inner, more in self.parts.items():
                if inner.startswith(f"{part}/"):
                    told[-1] += f", of which {inner.partition('/')[2]} {_percent(more / whole)}"
        return f"{name}: {steps:,} {unit} in {whole:.0f} s, {_rate(steps / whole)} a second: {'; '.join(told)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}" if a_second >= 9.95 else f"{a_second:.1f}"
