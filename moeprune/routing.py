"""What a router demands of the experts that are left."""

from dataclasses import dataclass

from moeprune.errors import BadInput


@dataclass(frozen=True)
class Routing:
    """`experts` routed experts a layer, `top_k` chosen per token, in `groups` of which `top_groups` may be chosen."""

    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1

    @property
    def least(self) -> int:
        """The smallest number of experts a layer may keep.

        At least top-k; with groups the allowed ones must still hold top-k experts, and a group is ranked by its best
        two (DeepSeek-V3), so it needs two.
        """
        if self.groups == 1:
            return self.top_k
        per_group = max(2, -(-self.top_k // self.top_groups))
        return min(self.groups * per_group, self.experts)

    def check(self, keep: int) -> None:
        """Raise BadInput, with the nearest feasible number, if a layer cannot keep that many experts."""
        if keep > self.experts:
            raise BadInput(f"mask: {keep} experts to keep, but a layer has only {self.experts}")
        if keep < self.least:
            why = f"the router needs {self.least} (top-k {self.top_k}"
            why += f" in {self.top_groups} of {self.groups} groups)" if self.groups > 1 else ")"
            raise BadInput(
                f"mask: {keep} of {self.experts} experts to keep, but {why}: "
                f"keep at least {self.least}, a ratio of at most {1 - self.least / self.experts:.4g}"
            )
        if keep % self.groups:
            nearest = max(self.least, round(keep / self.groups) * self.groups)
            raise BadInput(
                f"mask: {keep} experts to keep cannot be shared out over {self.groups} router groups "
                f"equally: the nearest number that can is {nearest}"
            )
