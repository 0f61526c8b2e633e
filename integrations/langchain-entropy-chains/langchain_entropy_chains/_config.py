"""What a call's config says about early stopping reaches the model's own methods as settings of the call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig, ensure_config

from entropy_chains import is_holdout
from entropy_chains.errors import SettingsError
from langchain_entropy_chains._roots import with_root
from langchain_entropy_chains._traced import Carried, Computed, traced_result
from langchain_entropy_chains._version import __version__

OFF, HOLDOUT, STRUCTURED = "early_stop", "early_stop_holdout", "early_stop_structured"
"""Settings of a call: False runs it in full; True leaves it to the holdout; True says that structured output was asked for."""

STRUCTURED_KEYS = ("ls_structured_output_format", "structured_output_format")
"""By these LangChain says so, which the model's own methods are not told. Not every model's settings show it."""


class Switched(BaseChatModel):
    """A chat model whose calls may be run in full: by ``config={"configurable": {"early_stop": False}}``, or for the holdout."""

    def _entropy_chains_holdout(self) -> tuple[float, str]:
        """Share and salt of the holdout."""
        raise NotImplementedError

    def _entropy_chains_switched(
        self, config: RunnableConfig | None, kwargs: dict[str, Any]
    ) -> tuple[RunnableConfig, dict[str, Any]]:
        config = _versioned(ensure_config(config))
        kwargs = {**switch_of(config), **kwargs}
        if any(map(kwargs.get, STRUCTURED_KEYS)):
            kwargs[STRUCTURED] = True
        share, salt = self._entropy_chains_holdout()
        if share and HOLDOUT not in kwargs:
            config, root = with_root(config)
            kwargs[HOLDOUT] = is_holdout(root, share=share, salt=salt)
        return config, kwargs

    def _entropy_chains_chosen(self, config: RunnableConfig | None) -> Switched:
        """The model that serves a call: a config may choose another."""
        return self

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002 (LangChain's name)
        config, kwargs = self._entropy_chains_switched(config, kwargs)
        return super(Switched, self._entropy_chains_chosen(config)).invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        config, kwargs = self._entropy_chains_switched(config, kwargs)
        return await super(Switched, self._entropy_chains_chosen(config)).ainvoke(input, config, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:  # noqa: A002
        carried = Carried(ensure_config(config), CallbackManager)
        config, kwargs = self._entropy_chains_switched(carried.config, kwargs)
        for chunk in super(Switched, self._entropy_chains_chosen(config)).stream(input, config, **kwargs):
            carried.see(chunk)
            yield chunk

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:  # noqa: A002
        carried = Carried(ensure_config(config), AsyncCallbackManager)
        config, kwargs = self._entropy_chains_switched(carried.config, kwargs)
        stream = super(Switched, self._entropy_chains_chosen(config)).astream(input, config, **kwargs)
        async with aclosing(stream) as chunks:  # type: ignore[type-var]  # a generator
            async for chunk in chunks:
                carried.see(chunk)
                yield chunk

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        config, kwargs = self._entropy_chains_switched(config, kwargs)
        return super(Switched, self._entropy_chains_chosen(config)).stream_events(input, config, **kwargs)

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        config, kwargs = self._entropy_chains_switched(config, kwargs)
        return super(Switched, self._entropy_chains_chosen(config)).astream_events(input, config, **kwargs)

    # LangChain's own two below, around the cache

    def _generate_with_cache(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        with Computed() as computed:
            result = super()._generate_with_cache(messages, stop=stop, run_manager=run_manager, **kwargs)
        return traced_result(result, run_manager, cached=not computed)

    async def _agenerate_with_cache(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        with Computed() as computed:
            result = await super()._agenerate_with_cache(messages, stop=stop, run_manager=run_manager, **kwargs)
        return traced_result(result, run_manager, cached=not computed)


def switch_of(config: RunnableConfig) -> dict[str, Any]:
    """The config's switch, where it has one."""
    wanted = (config.get("configurable") or {}).get(OFF)
    if wanted is not None and not isinstance(wanted, bool):
        raise SettingsError(f"configurable {OFF} is {wanted!r}; it must be True or False")
    return {} if wanted is None else {OFF: wanted}


def _versioned(config: RunnableConfig) -> RunnableConfig:
    """The config, with this package among the versions that LangChain tells of a run."""
    metadata = config.get("metadata") or {}
    versions = {**(metadata.get("lc_versions") or {}), "langchain-entropy-chains": __version__}
    return {**config, "metadata": {**metadata, "lc_versions": versions}}
