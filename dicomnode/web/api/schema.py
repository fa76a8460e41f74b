"""The objects of the results part of the API, for OpenAPI and for tests: what a client may rely on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

VerdictWord = Literal["similar", "none", "repository-too-small", "not-searchable"]
StatusWord = Literal["present", "none", "unknown"]


class Shape(BaseModel):
    """An object with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class Shown(Shape):
    """What images show, as headers say; several as "ABDOMEN/CHEST", "" where it is not told."""

    modality: str
    region: str


class BeyondTaught(Shape):
    """A query beyond what its model was taught."""

    taught: list[Shown]
    shows: Shown


class QuerySaid(Shape):
    """What is said of a query: nothing that identifies it."""

    modality: str
    slices: int
    untaught: BeyondTaught | None = Field(description="Where the model learnt from nothing like the query.")


Dice = Annotated[float | None, Field(ge=0, le=1)]


class Outlines(Shape):
    """What the network outlines: mean Dice on held-out volumes, as its pack says; null where it does not."""

    lungs: Dice
    infection: Dice


class Result(Shape):
    """An answer reached by its link, or a query made in the browser."""

    id: str
    kind: Literal["answer", "upload"]
    expires: float | None = Field(description="Seconds since the epoch.")
    verdict: VerdictWord
    reason: str
    p: float | None = Field(description="Conformal p; null where it cannot be given.")
    calibrated: bool = Field(description="Whether a similarity may be shown in percent.")
    searched: int = Field(description="Cases that were open to the search.")
    k: int = Field(description="Cases stored.")
    query: QuerySaid
    model_id: str
    explains: bool = Field(description="Whether /why can answer: the model that gave the answer is still here.")
    outlines: Outlines | None = Field(description="Null: its model outlines nothing, or is no longer here.")
    organisation: str
    text: str


class GraphFinding(Shape):
    """A coded finding. Untrusted text."""

    system: str
    code: str
    display: str


class Node(Shape):
    """A case of the graph; the first is the centre."""

    id: str = Field(description="Handle of the case, or `query`.")
    rank: int
    similarity: float = Field(ge=0, le=1)
    distance: float = Field(ge=0, le=1, description="1 - similarity; never decreases with rank.")
    angle: float = Field(description="Radians; cases alike point the same way.")
    status: StatusWord
    findings: list[GraphFinding]
    modality: str
    body_part: str
    subject: str = Field(description="Pseudonym; empty for the query.")
    has_picture: bool


class Graph(Shape):
    """Cases round a query or a case."""

    live: bool = Field(description="Asked now; false: the stored answer.")
    verdict: VerdictWord
    reason: str
    p: float | None
    calibrated: bool
    searched: int
    start: str | None = Field(alias="from", description="The case it was asked from.")
    total: int
    nodes: list[Node]
    edges: list[tuple[int, int, float]] = Field(description="Positions in `nodes`, i < j, and 1 - cosine.")


class CaseFinding(GraphFinding):
    """A coded finding and who stated it."""

    source: str


class Preset(Shape):
    """A window by name, in Hounsfield units."""

    name: Literal["lung", "mediastinum", "bone", "brain"]
    center: float
    width: float


class Series(Shape):
    """A series: frames in the order of their position, the head first."""

    index: int
    description: str
    modality: str
    frames: int
    rows: int
    columns: int
    spacing: tuple[float, float] | None = Field(description="Row and column spacing, mm.")
    monochrome1: bool = Field(description="High values are dark.")
    window: tuple[float, float] = Field(description="Centre and width to begin with.")
    presets: list[Preset] = Field(description="CT only.")
    outlined: bool = Field(description="Whether masks.png of its frames can be asked for.")


class Pair(Shape):
    """A frame of the case beside the query's frame that it matches; null where the query's is no longer kept."""

    series: int
    frame: int
    query_series: int | None
    query_frame: int | None
    similarity: float


class CaseDetail(Shape):
    """What is known of a case. Empty where not known."""

    id: str
    rank: int | None
    subject: str
    modality: str
    body_part: str
    manufacturer: str
    organisation: str
    age_band: str
    sex: str
    source: str
    status: StatusWord
    findings: list[CaseFinding]
    series: list[Series]
    best: list[Pair] = Field(description="Best matching pairs, best first.")


Place = Annotated[
    tuple[float, float, float, float],
    Field(description="Left, top, right, bottom of the grid in shares of the frame; may reach outside."),
]


class Why(Shape):
    """How much the similarity falls when a region is covered; below 0: it rises.

    The networks see a square around the body: the grid lies on that part of the frame, not on all of it.
    """

    rows: int
    columns: int
    case: list[list[float]]
    query: list[list[float]]
    case_place: Place
    query_place: Place
    similarity: float
