"""What stands where a model does, in another process or on another machine, and only writes or is read."""

from __future__ import annotations

from typing import Self


class NeverTrains:
    """It is always in evaluation mode, and answers as a model would whose mode is changed."""

    training = False

    def eval(self) -> Self:
        """It is in that mode already."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Do nothing: there is one mode alone."""
        assert not mode, f"a {type(self).__name__} does not train"
        return self
