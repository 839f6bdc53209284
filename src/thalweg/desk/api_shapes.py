"""The shapes of the API's answers, which its schema declares and its tests hold it to.

Names of papers are those of Hugging Face's papers API; what only this desk knows is under ``thalweg``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from thalweg.desk.check import State


class Failure(BaseModel):
    """Why there is no answer."""

    error: str


FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "A value that is not allowed; it says what is"},
    404: {"model": Failure, "description": "There is no such thing"},
    422: {"model": Failure, "description": "A value that is missing or of the wrong kind"},
    429: {"model": Failure, "description": "Too much at once; Retry-After says when to come back"},
    503: {"model": Failure, "description": "Data that cannot be read just now; Retry-After says when"},
}


class Author(BaseModel):
    name: str


class Organization(BaseModel):
    name: str
    fullname: str


class Thalweg(BaseModel):
    """What the desk knows of a paper beyond its text."""

    key: str = Field(description="its name on the desk: /papers/KEY")
    room: str
    claim: str
    status: str = Field(description="planned, partial, working, or imported")
    parts: list[str] = Field(description="import paths of its code")
    addresses: list[str] = Field(description="findings that it helps against")
    automatic: bool = Field(description="whether room, topics and findings were guessed from the text")
    verdict: str | None = Field(description="what was measured of its claim; null for nothing yet")
    effect: str | None


class PaperShape(BaseModel):
    """A paper, as ``huggingface_hub.PaperInfo`` reads it."""

    id: str = Field(description="its arXiv id; another id, or its key, where it has none")
    title: str
    summary: str
    authors: list[Author]
    publishedAt: str | None = Field(description="a moment in ISO 8601; of a month, its first")
    submittedOnDailyAt: str | None = Field(description="when it was imported")
    upvotes: int
    numComments: int
    organization: Organization | None
    ai_keywords: list[str] = Field(description="topics")
    githubRepo: str | None
    thalweg: Thalweg


class ListItem(BaseModel):
    """A paper in a list: the paper inside, what the list says of it outside."""

    paper: PaperShape
    title: str
    summary: str
    publishedAt: str | None
    submittedOnDailyAt: str | None
    upvotes: int
    numComments: int
    organization: Organization | None
    ai_keywords: list[str]
    githubRepo: str | None


class MeasuredShape(BaseModel):
    """What was measured of one paper's claim, in its study's first setting."""

    key: str
    id: str
    title: str
    verdict: str
    setting: str | None
    metric: str | None
    effect: float | None = Field(description="median over the seeds")
    spread: list[float | None] | None = Field(description="least and greatest effect over the seeds")
    formula: str | None = Field(
        description="a ratio, of which 1 is no difference, or a difference, of which 0"
    )
    seeds: int
    minutes: float
    date: str


class EvidenceShape(BaseModel):
    """Everything that was measured for a paper; ``settings`` has every arm and every seed."""

    model_config = ConfigDict(extra="allow")

    paper: str
    claim: str
    headline: str
    metric: str
    verdict: str
    effect: float | None
    formula: str
    spread: list[float | None]
    rules: dict[str, str]
    seeds: list[int]
    minutes: float
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    notes: str
    settings: dict[str, Any]


class Remedying(BaseModel):
    """A paper that addresses a finding."""

    key: str
    id: str
    title: str
    status: str
    verdict: str | None
    effect: str | None


class Trouble(BaseModel):
    """A finding by name: what it means and what helps, the measured first."""

    name: str
    meaning: str
    severity: list[str] = Field(description="how grave it can be, the mildest first: info, warning, critical")
    papers: list[Remedying]
    imported: int = Field(description="imported papers that address it by their text alone")


class RunShape(BaseModel):
    """A run; times are seconds of 1970."""

    id: int
    name: str
    started: float
    ended: float | None
    steps: int
    state: str
    overhead: str = Field(description="what watching took, in words")
    settings: dict[str, str]


class WholeRun(RunShape):
    """A run with what there is to ask of it."""

    readings: list[str] = Field(description="names for /api/runs/RUN/curve")
    layered: list[str] = Field(description="those that are known by layer, for /api/runs/RUN/layers")
    left_out: dict[str, str] = Field(description="what was not measured as often as wished, and why")
    findings: int


class RemedyShape(BaseModel):
    title: str
    code: str
    paper: str


class FindingShape(BaseModel):
    """Something that happened in a run, with the numbers that show it."""

    name: str
    step: int
    message: str
    evidence: dict[str, float | Literal["nan", "inf", "-inf"]]
    severity: str
    layers: list[str]
    papers: list[str]
    remedies: list[RemedyShape]
    found: int | None


class CurveShape(BaseModel):
    """A curve; a value is null where it was not finite."""

    step: list[int]
    value: list[float | None]


class LayersShape(BaseModel):
    """One reading by layer, each at the same steps."""

    step: list[int]
    layers: dict[str, list[float | None]]


class CheckShape(BaseModel):
    name: str
    state: State
    what: str
    when: float | None


class ProblemShape(BaseModel):
    source: str
    what: str
    first: float
    last: float
    times: int


class HealthShape(BaseModel):
    """``state`` is the worst of the checks; times are seconds of 1970."""

    state: Literal["good", "warn", "bad"]
    checks: list[CheckShape]
    problems: list[ProblemShape]
