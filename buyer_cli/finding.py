"""Which job, group or node is meant: a whole id, a unique prefix, `last`, or a node's name while only one node has it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller
from buyer_cli.complaint import NOT_FOUND, USAGE, Complaint
from buyer_cli.printable import printable
from events.errors import MarketUnreachable
from events.home import choose_wallet
from events.session import SessionStore
from events.values import Role

Json = dict[str, Any]
_JOB_PREFIX = re.compile(r"j[a-z2-7]{0,19}")
_GROUP_ID = re.compile(r"g[a-z2-7]{19}")
_CANDIDATES = 5


def my_address(caller: Caller) -> str:
    """The wallet that acts: of the keystore, or one of which a delegation lies here. Raises IdentityError."""
    home = caller.settings.home
    markets = [caller.settings.market_id] if caller.settings.market_id else [folder.name for folder in home.glob("sessions/*")]
    delegated = {address for market in markets for address in SessionStore(home, market).delegated(Role.BUYER)}
    return choose_wallet(caller.settings, Role.BUYER, delegated).address


def find_job(caller: Caller, api: Api, asked: str, *, market_knows: bool = False) -> Json:
    """The job that is meant. Raises Complaint (3 not found, 2 ambiguous). `market_knows`: the caller asks the market itself about a
    job whose whole id was given, so the API may be away; then only the id is told."""
    if asked == "last":
        mine = api.items("/v1/jobs", {"buyer": my_address(caller)}, most=1)
        if not mine:
            raise Complaint("unknown_job", "You have no job yet.", "", "bazaar run SCRIPT", exit_code=NOT_FOUND)
        return mine[0]
    if _GROUP_ID.fullmatch(asked):
        found = jobs_of_group(api, asked)
        names = " ".join(str(job["id"]) for job in found[:_CANDIDATES]) + (" ..." if len(found) > _CANDIDATES else "")
        raise Complaint("ambiguous", f"{asked} is a group of {len(found)} jobs.", f"They are {names}.", "name one of them", exit_code=USAGE)
    if not _JOB_PREFIX.fullmatch(asked):
        raise _no_job(asked, "A job's id is j and 19 letters and digits; a unique beginning of it will do, and so will `last`.")
    if len(asked) == 20:
        return _by_id(api, asked, market_knows)
    found = [job for job in _jobs_to_search(caller, api) if str(job.get("id", "")).startswith(asked)]
    if not found:
        raise _no_job(asked, "No job of yours has an id that begins so.")
    if len(found) > 1:
        raise Complaint("ambiguous", f"{asked} is the beginning of {len(found)} ids.", _listed(found), "write more of it", exit_code=USAGE)
    return found[0]


def find_jobs(caller: Caller, api: Api, asked: Iterable[str], *, market_knows: bool = False) -> list[Json]:
    """The jobs that are meant, each once; for a group all of its jobs. Raises Complaint."""
    found: dict[str, Json] = {}
    for one in asked:
        some = jobs_of_group(api, one) if _GROUP_ID.fullmatch(one) else [find_job(caller, api, one, market_knows=market_knows)]
        found |= {str(job["id"]): job for job in some}
    return list(found.values())


def jobs_of_group(api: Api, group: str) -> list[Json]:
    """All jobs of a group, ranks in their order. Raises Complaint when nobody may see any."""
    found = sorted(api.items("/v1/jobs", {"group": group}), key=lambda job: (job.get("rank") or 0, job.get("submitted_ms") or 0))
    if not found:
        raise Complaint("unknown_job", f"There is no group {group}.", "No job of yours is in it.", "bazaar ps -a", exit_code=NOT_FOUND)
    return found


def with_ranks(api: Api, found: Iterable[Json]) -> list[Json]:
    """These jobs, and where one is a rank of a gang all of its ranks."""
    known: dict[str, Json] = {}
    for job in found:
        some = jobs_of_group(api, str(job["group"])) if is_rank(job) else [job]
        known |= {str(one["id"]): one for one in some}
    return list(known.values())


def is_rank(job: Json) -> bool:
    """Whether it belongs to a gang."""
    return int(job.get("num_nodes") or 1) > 1 and bool(job.get("group"))


def _by_id(api: Api, job_id: str, market_knows: bool) -> Json:
    try:
        return api.get(f"/v1/jobs/{job_id}")
    except MarketUnreachable:
        if not market_knows:
            raise
        return {"id": job_id}


def _jobs_to_search(caller: Caller, api: Api) -> list[Json]:
    return api.items("/v1/jobs", {"buyer": my_address(caller)})


def _no_job(asked: str, why: str) -> Complaint:
    return Complaint("unknown_job", f"There is no job {printable(asked)}.", why, "bazaar ps -a", exit_code=NOT_FOUND)


def _listed(found: list[Json]) -> str:
    shown = [f"{entry.get('id')} ({entry.get('name')})" for entry in found[:_CANDIDATES]]
    return ", ".join(shown) + (", ..." if len(found) > _CANDIDATES else "")


def find_node(nodes: list[Json], asked: str) -> Json:
    """The node that is meant. Raises Complaint (3 not found, 2 ambiguous, both with the candidates)."""
    by_id = [node for node in nodes if node.get("id") == asked]
    found = by_id or [node for node in nodes if node.get("name") == asked]
    found = found or [node for node in nodes if str(node.get("id", "")).startswith(asked)]
    if len(found) == 1:
        return found[0]
    if found:
        hint = "name it by its id"
        raise Complaint("ambiguous", f"{printable(asked)} may mean {len(found)} nodes.", _listed(found), hint, exit_code=USAGE)
    have = _listed(nodes) if nodes else "no node is offered at present"
    raise Complaint("unknown_node", f"There is no node {printable(asked)}.", f"Nodes here: {have}.", "bazaar nodes", exit_code=NOT_FOUND)
