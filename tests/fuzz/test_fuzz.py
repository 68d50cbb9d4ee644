"""A few hundred of the cases of `make fuzz`, against a replica's code in a process of its own."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from cluster.artifacts import ArtifactStore
from tests.conformance import models, suite
from tests.fuzz.campaign import Campaign
from tests.fuzz.frames import CANARY
from tests.fuzz.grpcs import Grpc, GrpcCampaign
from tests.fuzz.valid import Valid
from tests.fuzz.wire import Answer, Case, Heard, judge

pytestmark = pytest.mark.timeout(120)
_COUNT = 300
PATH = f"/v2/models/{suite.MODEL_NAME}/infer"


@pytest.mark.parametrize("subject", ["pictures", "numbers"])
def test_hostile_requests_harm_nobody_and_open_no_file(subject: str, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    served = next(each for each in models.subjects(store) if each.name == subject)
    opened = tmp_path / "opened"
    with suite.alone(store, served, CANARY, str(opened)) as where:
        campaign = Campaign(Valid(served, PATH), [("direct", where.http)], seed=1)
        grpcs = Grpc(served, suite.MODEL_NAME)
        over_grpc = GrpcCampaign(grpcs, [("gRPC", where.grpc)], campaign.tally, seed=1)

        async def both() -> None:
            await asyncio.gather(campaign.run(_COUNT), over_grpc.run(_COUNT // 2))

        asyncio.run(both())
    tally = campaign.tally
    assert tally.faults == []
    assert tally.count() == _COUNT + _COUNT // 2
    assert tally.beside > 10
    assert tally.behind > _COUNT / 4
    assert not opened.exists(), opened.read_text()


def test_the_same_seed_sends_the_same(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    valid = Valid(models.pictures(store), PATH)
    one, same, other = (Campaign(valid, [], seed=seed) for seed in (1, 1, 2))
    for number in range(50):
        assert one.case(number)[0] == same.case(number)[0]
    assert [one.case(n)[0] for n in range(9)] != [other.case(n)[0] for n in range(9)]


def refusal(status: int, body: bytes = b'{"error":"because"}') -> Heard:
    return Heard([Answer(status, {"content-type": "application/json"}, body)])


def test_what_is_a_fault() -> None:
    """The judge itself: it must not let pass what the campaign is for."""
    case = Case("k", "w", b"")
    for heard in (refusal(400), refusal(503), Heard([Answer(400, {"content-type": "text/html"}, b"<h1>")])):
        assert judge(case, heard) == ""
    for heard in (
        refusal(500), refusal(502), refusal(400, b"{}"), refusal(404, b'{"error":""}'), refusal(400, b"no"), Heard(),
        refusal(413, b'{"error":"%s"}' % (b"x" * 5000)),
    ):  # fmt: skip
        assert judge(case, heard)
    assert judge(Case("k", "w", b"", wrong=True), refusal(200))
    assert judge(Case("framing", "w", b"", whole=False), Heard([Answer(200, {}, b"")] * 2))


def test_a_wrong_value_in_a_right_answer_is_seen(tmp_path: Path) -> None:
    subject = models.pictures(ArtifactStore(tmp_path / "store"))
    request = Valid(subject, PATH).of("json", random.Random(1))
    body = b'{"outputs":[{"name":"logits","datatype":"FP32","shape":[1,10],"data":[0,0,0,0,0,0,0,0,0,0]}]}'
    assert request.check(Answer(200, {"content-type": "application/json"}, body))
