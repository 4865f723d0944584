"""Hidden states as they left a run of units, by request: from them later units can be filled
again without the units before them.

    rows [positions, hidden size] in the dtype of the model, one buffer per request and boundary,
    that doubles as it fills; cut and written again where an attempt goes on further up.

Knows nothing of who needs them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeshard_p2p.core.effects import OpenCache
from edgeshard_p2p.core.work import CacheKey
from edgeshard_p2p.model.errors import NotLogged

ROWS_FIRST = 64


class RowLog:
    def __init__(self, start: int, like: Tensor) -> None:
        self.start = self.end = start
        self._rows = like.new_empty((ROWS_FIRST, like.shape[1]))

    def append(self, rows: Tensor) -> None:
        n = self.end - self.start
        while len(self._rows) < n + len(rows):
            self._rows = torch.cat([self._rows, torch.empty_like(self._rows)])
        self._rows[n : n + len(rows)] = rows
        self.end += len(rows)

    def cut(self, start: int, end: int) -> None:
        if not self.start == start <= end <= self.end:
            raise NotLogged(f"positions {start} to {end} of {self.start} to {self.end}")
        self.end = end

    def rows(self, position: int, n: int) -> Tensor:
        """A copy: the buffer may be written again while they are on their way."""
        if not self.start <= position <= position + n <= self.end:
            raise NotLogged(f"positions {position} + {n} of {self.start} to {self.end}")
        begin = position - self.start
        return self._rows[begin : begin + n].clone()

    @property
    def n_bytes(self) -> int:
        return self._rows.numel() * self._rows.element_size()


class HiddenLogs:
    def __init__(self) -> None:
        self._logs: dict[CacheKey, dict[int, RowLog]] = {}
        """By the unit that would have come next."""
        self._logged_at: dict[CacheKey, int] = {}

    def open(self, effect: OpenCache) -> None:
        """Keep what the effect names and drop the rest.  Raises NotLogged."""
        logs = self._logs.pop(effect.adopts or effect.key, {})
        self.drop(effect.key)
        kept: dict[int, RowLog] = {}
        for log in effect.logs:
            if log.unit not in logs:
                raise NotLogged(f"nothing before unit {log.unit}")
            kept[log.unit] = logs[log.unit]
            kept[log.unit].cut(log.start, log.end)
        self._logs[effect.key] = kept
        if effect.is_logged:
            self._logged_at[effect.key] = effect.units.end

    def drop(self, key: CacheKey) -> None:
        self._logs.pop(key, None)
        self._logged_at.pop(key, None)

    def append(self, key: CacheKey, unit: int, position: int, rows: Tensor) -> None:
        """Rows of ``key`` have come as far as ``unit``: kept if that is where it is logged."""
        if self._logged_at.get(key) != unit:
            return
        log = self._logs[key].get(unit)
        if log is None or log.end != position:
            log = self._logs[key][unit] = RowLog(position, rows)
        log.append(rows)

    def rows(self, key: CacheKey, unit: int, position: int, n: int) -> Tensor:
        """[n, hidden size].  Raises NotLogged.  A log that is not added to any more goes with its
        last row."""
        log = self._logs.get(key, {}).get(unit)
        if log is None:
            raise NotLogged(f"nothing of {key.request} before unit {unit}")
        rows = log.rows(position, n)
        if position + n == log.end and self._logged_at.get(key) != unit:
            del self._logs[key][unit]
        return rows

    def n_bytes(self) -> int:
        return sum(log.n_bytes for logs in self._logs.values() for log in logs.values())
