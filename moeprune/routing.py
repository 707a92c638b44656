"""What a router demands of the experts that are left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moeprune.errors import BadInput

FIXED_TOP_K = {"phimoe": 2}
"""Model types that choose this many experts whatever their config says: phimoe's sparsemixer is written for two."""


@dataclass(frozen=True)
class Routing:
    """`experts` routed experts a layer, `top_k` chosen per token, in `groups` of which `top_groups` may be chosen.

    Groups are equal runs of neighbouring experts, ranked by the `ranked_by` best experts in each.
    """

    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1
    ranked_by: int = 1

    @property
    def least(self) -> int:
        """The smallest number of experts a layer may keep.

        The groups that may be chosen must hold top-k experts: of fewer, experts of other groups are chosen too, and
        no error tells it. And each group must hold as many as it is ranked by.
        """
        return self.groups * max(self.ranked_by, -(-self.top_k // self.top_groups))

    def works(self, keep: int) -> bool:
        """Whether a layer can keep that many experts."""
        return self.least <= keep <= self.experts and keep % self.groups == 0

    def nearest(self, keep: int) -> list[int]:
        """The numbers next to `keep`, below and above it, that a layer can keep."""
        feasible = [number for number in range(self.experts + 1) if self.works(number)]
        below = [number for number in feasible if number <= keep][-1:]
        return below + [number for number in feasible if number > keep][:1]

    def check(self, keep: int, asked: str = "mask", say: Callable[[int], str] = str) -> None:
        """Raise BadInput if a layer cannot keep that many experts.

        The line says why and which requests next to it can be met: `asked` is the request, `say` writes another
        number of experts in the same unit.
        """
        if self.works(keep):
            return
        near = [say(number) for number in self.nearest(keep)]
        remedy = f"the nearest that {'work are' if len(near) > 1 else 'works is'} {' and '.join(near)}"
        if not near:
            remedy = "no number of experts can be kept"
        raise BadInput(f"{asked}: {keep} of {self.experts} experts to keep, but {self._obstacle(keep)}: {remedy}")

    def _obstacle(self, keep: int) -> str:
        if keep > self.experts:
            return f"a layer has only {self.experts}"
        if keep >= self.least:
            return f"its {self.groups} router groups must keep equally many"
        demands = f"top-k {self.top_k}"
        if self.groups > 1:
            demands += f" in {self.top_groups} of {self.groups} groups"
        if self.ranked_by * self.top_groups > self.top_k:
            demands += f", each group ranked by its best {self.ranked_by}"
        return f"the router needs {self.least} ({demands})"

    def check_kept(self, kept: Mapping[int, Sequence[int]]) -> None:
        """Raise BadInput if a layer cannot work with the experts that a mask keeps of it.

        Every group must keep equally many: the router cuts what is left into equal runs, so experts would change
        their group, other ones would be chosen, and no error would tell it.
        """
        size = self.experts // self.groups
        for layer, ids in kept.items():
            self.check(len(ids), f"mask: layer {layer}")
            each = [sum(expert // size == group for expert in ids) for group in range(self.groups)]
            if len(set(each)) > 1:
                raise BadInput(
                    f"mask: layer {layer} keeps {each} experts of its {self.groups} router groups, which must keep "
                    f"equally many: make a mask for this checkpoint that keeps {len(ids) // self.groups} of each"
                )
