"""Direct lessons for a vision tower: what the picture shows, and which patch shows which thing.

A caption or a tag says little about where to look. During training, linear heads that are thrown
away afterwards answer plain questions, which teaches a small tower to see in less time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from render import Rendered
from world import COLOURS, LANDS, OBJECTS, SKIES, Scene


class PatchLesson(torch.nn.Module):
    """The head and its answers for a set of rendered pictures."""

    def __init__(self, rendered: Rendered, width: int, grid: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(width, len(OBJECTS) + 1)
        most = max(len(row) for row in rendered.boxes)
        self.places = torch.full((len(rendered.boxes), most, 4), -1.0)
        self.kinds = torch.zeros(len(rendered.boxes), most, dtype=torch.long)
        for i, row in enumerate(rendered.boxes):
            for j, (kind, *place) in enumerate(row):
                self.places[i, j] = torch.tensor(place)
                self.kinds[i, j] = OBJECTS.index(kind) + 1
        ticks = (torch.arange(grid) + 0.5) / grid
        y, x = torch.meshgrid(ticks, ticks, indexing="ij")
        self.middles = torch.stack([x.flatten(), y.flatten()], dim=1)

    def answers(self, picked: list[int], kept: torch.Tensor) -> torch.Tensor:
        """Per patch the kind of thing under its middle, 0 for none: `[n, patches]`."""
        low, high = kept[:, None, :2], kept[:, None, 2:]
        spots = low + self.middles[None] * (high - low)
        places, found = self.places[picked], torch.zeros(len(picked), len(self.middles)).long()
        # The main thing comes first in a row and stands in front, so it is written last.
        for j in reversed(range(places.shape[1])):
            box = places[:, None, j]
            inside = ((spots >= box[..., :2]) & (spots <= box[..., 2:])).all(2)
            found = torch.where(inside, self.kinds[picked][:, j, None], found)
        return found

    def forward(
        self, patches: torch.Tensor, picked: list[int], kept: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """The loss of naming the things under `patches`, `[n, shown, width]`, which stand at `places`, `[n, shown]`."""
        guesses = self.head(patches).float()
        return F.cross_entropy(guesses.flatten(0, 1), self.answers(picked, kept).gather(1, places).flatten())


def questions(scene: Scene) -> list[int]:
    """Right answers of the `SceneLesson`: sky, land, main object and its colour, 0 for none."""
    colour = COLOURS.index(scene.main.colour) + 1 if scene.main.colour else 0
    return [SKIES.index(scene.sky), LANDS.index(scene.land), OBJECTS.index(scene.main_object), colour]


class SceneLesson(torch.nn.Module):
    """Sky, land, main object and its colour, read off the mean of the patches."""

    def __init__(self, rendered: Rendered, width: int) -> None:
        super().__init__()
        self.sizes = [len(SKIES), len(LANDS), len(OBJECTS), len(COLOURS) + 1]
        # the object is by far the hardest
        self.weights = (0.3, 0.3, 1.5, 0.3)
        self.head = torch.nn.Linear(width, sum(self.sizes))
        self.answers = torch.tensor([questions(scene) for scene in rendered.scenes])

    def forward(self, patches: torch.Tensor, picked: list[int]) -> torch.Tensor:
        """The weighted sum of the four losses of `patches`, `[n, patches, width]`."""
        loss = torch.zeros(())
        for column, guess in enumerate(self.head(patches.mean(1)).float().split(self.sizes, 1)):
            loss = loss + self.weights[column] * F.cross_entropy(guess, self.answers[picked, column])
        return loss
