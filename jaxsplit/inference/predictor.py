"""`jaxsplit.load`: the networks of a workdir as a function from images to probabilities."""

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array
from ml_collections import ConfigDict

from jaxsplit import losses
from jaxsplit.errors import ConfigError
from jaxsplit.inference import cascade as cascades
from jaxsplit.inference import cascade_fit, pictures, temperatures
from jaxsplit.inference.forward import Forward
from jaxsplit.inference.restore import Restored, restore
from jaxsplit.inference.temperatures import ENSEMBLE

_WINDOW = 8  # batches that a cascade takes together
Temperature = float | str


class Prediction(NamedTuple):
    """What networks say of N images.

    probabilities: float32[N, K] of the common answer.
    networks: name -> float32[N, K], each network's own probabilities; NaN where a cascade did not
      ask it.
    used: int[N], how many networks a cascade asked; None: all were.
    """

    probabilities: np.ndarray
    networks: dict[str, np.ndarray]
    used: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """How the networks answer; `Predictor.using` describes the fields."""

    networks: tuple[str, ...] | None = None
    combine: str | None = None
    temperature: Temperature = 1.0
    cascade: float | None = None


class Predictor:
    """The networks of a checkpoint, which predict; `load` makes one.

    predictor = jaxsplit.load("runs/digits")
    probabilities = predictor(["a.png", "b.jpg"])  # float32[2, K]
    predictor.class_names[probabilities[0].argmax()]
    """

    def __init__(
        self,
        restored: Restored,
        *,
        batch_size: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.restored = restored
        self.forward = Forward(restored)
        limit = batch_size or restored.config.eval.batch_size or restored.config.batch_size
        devices = restored.sharding.data_devices
        self.batch_size = devices * (1 << max(0, int(math.log2(max(limit // devices, 1)))))
        self.read = pictures.Reader(restored.facts, say)
        self._options = Options()

    @property
    def config(self) -> ConfigDict:
        """Of the run."""
        return self.restored.config

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return self.restored.step

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the K classes; their numbers where the data set has no names."""
        return self.restored.facts.labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the networks see."""
        return self.restored.facts.image_shape

    @property
    def networks(self) -> tuple[str, ...]:
        """Names that `networks=` takes: net0, ..., and leader and fusion where they exist."""
        return tuple(name for name in self.forward.answers if name != ENSEMBLE)

    @property
    def together(self) -> int:
        """Images that are worked on together; a cascade takes several batches at once."""
        return self.batch_size * (1 if self._options.cascade is None else _WINDOW)

    @property
    def is_cascade(self) -> bool:
        """Whether one network after another is asked."""
        return self._options.cascade is not None

    @property
    def temperature_of_answer(self) -> float:
        """The logits of the common answer are divided by it."""
        return self._temperature(self._answer() or "")

    def using(
        self,
        *,
        networks: Sequence[str | int] | str | int | None = None,
        combine: str | None = None,
        temperature: Temperature | None = None,
        cascade: float | None = None,
    ) -> "Predictor":
        """The same networks, which answer in another way; what is None stays as it is.

        Args:
          networks: names in `networks`, or numbers in the stack, of those that answer together; by
            default the answer is the method's own: the ensemble, the leader or the only network.
          combine: how several answer together: mean_logits, mean_probs, max_logits or max_probs;
            by default as `config.eval.ensemble` says. Without `networks` all of the stack do.
          temperature: the logits are divided by it: a positive number, or 'fitted' for those in
            the `eval.json` of the workdir.
          cascade: a threshold of 0 or more: one network after another is asked, in the order of
            `networks`, until the largest probability of their common answer reaches it. By default
            that order is the one by validation accuracy where that is known.

        Raises:
          ConfigError: a value is none of these.
        """
        changes: dict[str, Any] = {}
        if networks is not None:
            changes["networks"] = self._named(networks)
        if combine is not None:
            if combine not in losses.ENSEMBLES:
                allowed = ", ".join(losses.ENSEMBLES)
                raise ConfigError(f"combine={combine!r}: must be one of {allowed}")
            changes["combine"] = combine
        if temperature is not None:
            changes["temperature"] = temperatures.checked(temperature)
        if cascade is not None:
            if not cascade >= 0:
                raise ConfigError(f"cascade={cascade}: must be a threshold of 0 or more")
            if not self.restored.singles:
                method = self.config.method
                raise ConfigError(f"cascade={cascade}: method={method!r} has one network only")
            changes["cascade"] = float(cascade)
        # A copy shares the compiled programs.
        other = object.__new__(Predictor)
        other.__dict__ = self.__dict__ | {"_options": dataclasses.replace(self._options, **changes)}
        for name in (*other.voters, other._answer() or ""):
            other._temperature(name)  # one that is not known is refused now
        return other

    def __call__(self, images: pictures.Pictures, **options: Any) -> np.ndarray:
        """Probabilities float32[N, K] of images; arguments as `predict`."""
        return self.predict(images, **options).probabilities

    def predict(self, images: pictures.Pictures, **options: Any) -> Prediction:
        """The answer and each network's own.

        Args:
          images: uint8[N, H, W, C], a path, a picture of Pillow, or a list of paths, pictures and
            arrays uint8[H, W, C]. They are resized, cropped and normalised as in an evaluation,
            except arrays [N, H, W, C] of the networks' own size, which are taken as they are.
          options: as of `using`, for this call.

        Raises:
          PictureError: an image cannot be read; names it.
          ConfigError: a wrong array or option.
        """
        this = self.using(**options) if options else self
        if this._options.cascade is not None:
            return this._cascade(images, this._options.cascade)
        parts, waiting = [], None
        for batch in this._batches(images):
            started = this._start(batch)
            if waiting is not None:  # read one later, so that the device always has work
                parts.append(_host(*waiting))
            waiting = started, len(batch)
        if waiting is not None:
            parts.append(_host(*waiting))
        return this._joined(parts)

    def logits(self, images: pictures.Pictures) -> dict[str, np.ndarray]:
        """Name -> float32[N, K] of every answer of the method, as an evaluation has them."""
        parts = []
        for batch in self._batches(images):
            named = self.forward(self.forward.put(batch), self.forward.answers)
            found = jax.device_get(named)
            parts.append({name: found[name][: len(batch)] for name in self.forward.answers})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def fit_cascade(
        self, *, accuracy: float | None = None, cost: float | None = None
    ) -> cascades.Fitted:
        """The threshold of a cascade of `voters`, from the `predictions.npz` of the workdir.

        Args:
          accuracy: at least this share of right answers, at the lowest cost.
          cost: at most this share of the multiply-adds of all networks, with the best accuracy.

        Returns:
          `threshold`, for `using(cascade=)`, and what is `expected` on other images.

        Raises:
          ConfigError: not one of the two is given, none reaches it, or there is no such file.
        """
        this = self if self._options.cascade is not None else self.using(cascade=1)
        how = this._options.combine or this.config.eval.ensemble
        temperature = this._temperature("")
        return cascade_fit.fitted(
            this.restored,
            this.voters,
            how=how,
            temperature=temperature,
            accuracy=accuracy,
            share=cost,
        )

    def _cascade(self, images: pictures.Pictures, threshold: float) -> Prediction:
        """`predict` by a cascade."""
        names, parts = self.voters, []
        how = self._options.combine or self.config.eval.ensemble
        common, own = self._temperature(""), [self._temperature(name) for name in names]
        # Of several batches together, so that those who stay fill whole batches again.
        for some in self._batches(images, self.together):
            run = self.forward.cascaded(some, names, self.batch_size)
            found = cascades.compact(
                run, len(some), len(names), threshold, how=how, temperature=common
            )
            votes = {
                name: scipy.special.softmax(z / t, -1)
                for name, z, t in zip(names, found.logits, own, strict=True)
            }
            probabilities = np.exp(found.log_probabilities).astype(np.float32)
            parts.append(Prediction(probabilities, votes, found.used))
        return self._joined(parts)

    def _joined(self, parts: list[Prediction]) -> Prediction:
        """All parts as one; of none, no images."""
        empty = np.zeros((0, self.restored.facts.num_classes), np.float32)
        used = [np.zeros(0, np.int64), *(p.used for p in parts if p.used is not None)]
        return Prediction(
            np.concatenate([empty, *(part.probabilities for part in parts)]),
            {n: np.concatenate([empty, *(p.networks[n] for p in parts)]) for n in self.voters},
            None if self._options.cascade is None else np.concatenate(used),
        )

    def _start(self, batch: np.ndarray) -> tuple[Array, dict[str, Array]]:
        """(probabilities, {network: probabilities}) of a batch, which the device computes."""
        votes, answer = self.voters, self._answer()
        images = self.forward.put(batch)
        names = votes if answer is None else tuple(dict.fromkeys((*votes, answer)))
        named = self.forward(images, names)
        how = self._options.combine or self.config.eval.ensemble
        own = {name: _softmax((named[name],), self._temperature(name), how) for name in votes}
        together = votes if answer is None else (answer,)
        logits = tuple(named[name] for name in together)
        return _softmax(logits, self._temperature(answer or ""), how), own

    @property
    def voters(self) -> tuple[str, ...]:
        """The networks whose own probabilities `predict` gives.

        Those chosen, else those that a cascade or `combine` takes, else all.
        """
        if self._options.networks is not None:
            return self._options.networks
        if self._options.cascade is not None:
            return self.restored.by_accuracy()
        return self.restored.voters if self._options.combine is None else self.restored.members

    def _answer(self) -> str | None:
        """The name in the method's answers that is the answer; None: it is combined here."""
        chosen, combine = self._options.networks, self._options.combine
        if chosen is not None:
            return chosen[0] if len(chosen) == 1 else None
        if combine is None or len(self.restored.members) == 1:
            return self.restored.method.answer
        return None

    def _temperature(self, name: str) -> float:
        """That of an answer; '' is what is combined here."""
        return temperatures.of(self.restored, self._options.temperature, name or self._common())

    def _common(self) -> str:
        """The answer of evaluations that a combination here is; '' where it is none."""
        same_how = self._options.combine in (None, self.config.eval.ensemble)
        return ENSEMBLE if same_how and set(self.voters) == set(self.restored.members) else ""

    def _named(self, networks: Sequence[str | int] | str | int) -> tuple[str, ...]:
        """Names without repetition; numbers count in the stack."""
        given = [networks] if isinstance(networks, str | int) else list(networks)
        names = []
        for each in given:
            name = f"net{each}" if str(each).isdecimal() else str(each)
            if name not in self.forward.answers:
                known = ", ".join(self.networks)
                raise ConfigError(f"networks={each!r}: must be of {known}, or a number")
            names.append(name)
        if not names:
            raise ConfigError("networks=(): must be at least one")
        return tuple(dict.fromkeys(names))

    def _batches(self, images: pictures.Pictures, size: int = 0) -> Iterator[np.ndarray]:
        """uint8[b, H, W, C], b at most `size` or `batch_size`; threads read ahead of the device."""
        size = size or self.batch_size
        array = pictures.ready(images, self.restored.facts)
        if array is not None:
            yield from (array[at : at + size] for at in range(0, len(array), size))
            return
        waiting = pictures.singly(images)
        with ThreadPoolExecutor(threads(self.config)) as pool:
            ahead = [pool.submit(self.read, p) for p in itertools.islice(waiting, size)]
            while ahead:
                more = [pool.submit(self.read, p) for p in itertools.islice(waiting, size)]
                try:
                    yield np.stack([made.result() for made in ahead])
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                ahead = more


def load(
    workdir: str | pathlib.Path,
    which: str | int = "latest",
    *,
    networks: Sequence[str | int] | str | int | None = None,
    combine: str | None = None,
    temperature: Temperature | None = None,
    cascade: float | None = None,
    config: ConfigDict | None = None,
    batch_size: int = 0,
    devices: Sequence[jax.Device] | None = None,
    say: Callable[[str], None] = print,
) -> Predictor:
    """The networks of a workdir, ready to predict; no data set is needed.

    Args:
      workdir: of a run, or one that was imported or exported.
      which: checkpoint, 'latest', 'best' or a step.
      networks, combine, temperature, cascade: as of `Predictor.using`.
      config: of the run, with fields changed that may differ in an evaluation; None: its own.
      batch_size: images at once at most; 0: as an evaluation. Rounded down to a power of two.
      devices: the images of a batch are shared out over them; None: the first of this process.
      say: gets a line about what is not as expected.

    Raises:
      ConfigError: no such run, checkpoint or network.
    """
    if batch_size < 0:
        raise ConfigError(f"batch_size={batch_size}: must be at least 0")
    restored = restore(workdir, which, config=config, devices=devices, say=say)
    predictor = Predictor(restored, batch_size=batch_size, say=say)
    return predictor.using(
        networks=networks, combine=combine, temperature=temperature, cascade=cascade
    )


def threads(config: ConfigDict) -> int:
    """That decode images."""
    return max(1, min(config.data.threads, 2 * (os.cpu_count() or 1)))


def _probabilities(logits: tuple[Array, ...], temperature: float, how: str) -> Array:
    """Probabilities float[B, K] of the combination of logits float[B, K] of one or several."""
    combined = losses.ensemble(jnp.stack(logits), how) if len(logits) > 1 else logits[0]
    return jax.nn.softmax(combined.astype(jnp.float32) / temperature)


_softmax: Callable[..., Array] = jax.jit(_probabilities, static_argnames="how")


def _host(started: tuple[Array, dict[str, Array]], count: int) -> Prediction:
    """The first `count` rows, on the host."""
    probabilities, own = jax.device_get(started)
    return Prediction(
        np.asarray(probabilities)[:count], {name: np.asarray(p)[:count] for name, p in own.items()}
    )
