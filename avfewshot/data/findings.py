"""What a reader or a check noticed about a data set: nothing is dropped or mended in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """One observation."""

    # ``info`` (known and harmless), ``warning`` (worth a look), ``error`` (the data cannot be used so)
    severity: Severity
    code: str  # stable identifier, such as ``empty-event``; docs/data.md lists them
    message: str  # one sentence for people; it says what was done about it
    count: int = 1  # how often
    examples: tuple[str, ...] = ()  # the first few places or ids

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready values."""
        return asdict(self) | {"examples": list(self.examples)}


@dataclass
class DatasetReport:
    """All findings about one data set."""

    findings: list[Finding] = field(default_factory=list)  # in the order in which they were made

    def add(self, severity: Severity, code: str, message: str, examples: Iterable[str] = (), *, count: int = 0) -> None:
        """Add a :class:`Finding`; the first few `examples` are kept, and `count` is their number by default."""
        places = tuple(examples)
        self.findings.append(Finding(severity, code, message, count or max(1, len(places)), places[:MAX_EXAMPLES]))

    def note(self, severity: Severity, code: str, message: str, examples: Iterable[str]) -> None:
        """Add a finding if there are examples."""
        if examples := tuple(examples):
            self.add(severity, code, message, examples)

    @contextmanager
    def collect(self, prefix: str = "") -> Iterator[Callable[[Severity, str, str, str], None]]:
        """Gather examples one by one: gives ``remark(severity, code, message, example)``; one finding for each kind."""
        kinds: dict[tuple[Severity, str, str], list[str]] = {}
        yield lambda severity, code, message, example: kinds.setdefault((severity, code, message), []).append(example)
        for (severity, code, message), examples in kinds.items():
            self.add(severity, code, f"{prefix}{message}", examples)

    def find(self, code: str) -> Finding | None:
        """The first finding with this code, or None."""
        return next((finding for finding in self.findings if finding.code == code), None)

    def describe(self) -> list[str]:
        """What a person should know before using the data, a sentence each: every finding but the harmless ones."""
        lines = []
        for finding in self.findings:
            if finding.severity != "info":
                places = ", ".join(finding.examples[:3])
                many = f" ({finding.count:,})" if finding.count > 1 else ""
                lines.append(finding.message + many + (f" E.g. {places}." if places else ""))
        return lines

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the findings, in order."""
        return tuple(finding.code for finding in self.findings)

    @property
    def worst(self) -> Severity | None:
        """The gravest severity among the findings, or None without any."""
        severities = {finding.severity for finding in self.findings}
        return next((severity for severity in reversed(SEVERITIES) if severity in severities), None)
