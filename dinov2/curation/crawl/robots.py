"""robots.txt (RFC 9309): may this agent take this URL.

Protego reads it, as other crawlers do, with the usual leniency for misspellings. What it can't bear is done before:
only the first half megabyte is read, as the RFC allows, and agents other than ours are made one, because it keeps every
rule once an agent of its group: 15,000 agents over 15,000 rules, in 300 kB, would take 20 GB.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protego import Protego

ROBOTS_PATH = "/robots.txt"
MAX_ROBOTS_BYTES = 500 * 1024  # RFC 9309 section 2.5: at least this much must be read
_AGENT_LINE = re.compile(r"\s*user[-\s]*agent\b[\s:]*(.*)", re.IGNORECASE)
_SOMEONE_ELSE = "user-agent: another-agent-than-ours"


class Robots:
    """What one robots.txt says to one agent."""

    def __init__(self, data: bytes, user_agent: str) -> None:
        self._agent = product_token(user_agent)
        self._rules = _parse(data, self._agent)

    def allows(self, url: str) -> bool:
        """Whether the canonical `url`, of the host of this robots.txt, may be taken."""
        return self._rules.can_fetch(url, self._agent)

    def crawl_delay_s(self) -> float:
        """Seconds that the agent is asked to leave between requests; 0 if it is not asked."""
        return self._rules.crawl_delay(self._agent) or 0.0


def product_token(user_agent: str) -> str:
    """The name by which rules address an agent: `example-bot` of `Example-Bot/1.0 (+https://...)`."""
    return (user_agent.partition("/")[0].split() or [""])[0].lower()


def _parse(data: bytes, agent: str) -> "Protego":
    from protego import Protego

    if len(data) > MAX_ROBOTS_BYTES:
        data = data[:MAX_ROBOTS_BYTES].rpartition(b"\n")[0]  # half a rule would say something else
    lines = data.decode("utf-8-sig", errors="replace").splitlines()
    return Protego.parse("\n".join(_without_others(line, agent) for line in lines))


def _without_others(line: str, agent: str) -> str:
    """`line`, where it names an agent that can't be ours with one name for all such."""
    match = _AGENT_LINE.match(line)
    name = match.group(1).partition("#")[0].strip().lower() if match else ""
    if not name or name == "*" or name.replace("*", "") in agent:
        return line
    return _SOMEONE_ELSE
