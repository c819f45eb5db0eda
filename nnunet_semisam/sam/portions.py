"""How much a generalist is asked at once; less for the rest of the run after its device ran out of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")
ALL = 1 << 30
NO_MEMORY = ("out of memory", "ALLOC_FAILED", "unable to find an engine")  # the last two are cuBLAS' and cuDNN's words


class Portions:
    """Numbers of images encoded, and of objects decoded, at once.

    Args:
        items: objects to begin with.
        say: is told about smaller portions, once they have done.
    """

    def __init__(self, items: int, say: Callable[[str], None]) -> None:
        self.items, self.images = items, ALL
        self.say = say

    def fitted(self, ask: Callable[[], T]) -> T:
        """What `ask` returns; it is called again while a portion was too large.

        Raises:
            RuntimeError: a single image or object does not fit.
        """
        before = self.items, self.images
        while True:
            try:
                answer = ask()
                break
            except _TooMuch:
                pass  # what the failed attempt holds is freed when this block is left
            torch.cuda.empty_cache()
        if before != (self.items, self.images):
            images = "all images" if self.images == ALL else f"at most {self.images} image(s)"
            self.say(
                "WARNING: semisam: SAM ran out of memory. For the rest of this run it encodes "
                f"{images} and decodes at most {self.items} object(s) at once, which takes longer"
            )
        return answer

    @contextlib.contextmanager
    def encoding(self, images: int) -> Iterator[None]:
        """Around the encoding of so many images."""
        try:
            yield
        except RuntimeError as error:
            _require_no_memory(error)
            self._halve_images(images, "a single image", error)

    @contextlib.contextmanager
    def decoding(self, items: int, images: int) -> Iterator[None]:
        """Around the decoding of so many objects, while so many images are held encoded."""
        try:
            yield
        except RuntimeError as error:
            _require_no_memory(error)
            if items == 1:
                self._halve_images(images, "a single object", error)
            self.items = items // 2
            raise _TooMuch from error

    def _halve_images(self, images: int, what: str, error: Exception) -> None:
        if images <= 1:
            raise RuntimeError(
                f"semisam: SAM runs out of memory with {what} ({error}). Choose a smaller generalist (sam.backend), a "
                "smaller sam.backend_args.input_size where there is one, a smaller batch or patch; or train without "
                "SAM (nnUNetTrainerMeanTeacher)."
            ) from error
        self.images = images // 2
        raise _TooMuch from error


def _require_no_memory(error: RuntimeError) -> None:
    """Raises what is no lack of memory again."""
    if not any(words in str(error) for words in NO_MEMORY):
        raise error


class _TooMuch(Exception):
    """A portion did not fit; the next ones are smaller."""
