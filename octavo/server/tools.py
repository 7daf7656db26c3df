"""Tools and the choice among them, from a request to what the codec works with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from octavo.api.tools import ToolChoice, ToolChoiceObject, ToolParam
from octavo.codec.tools import Choice, Tool
from octavo.errors import RequestError

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def known_tools(tools: Sequence[ToolParam] | None, param: str = "tools") -> tuple[Tool, ...]:
    """Raises RequestError for a name that is none or stands twice, and for parameters that are no object's schema."""
    tools = tools or ()
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"{param} has {len(tools)} tools, at most {MAX_TOOLS} are allowed", param=param)
    found: dict[str, Tool] = {}
    for number, tool in enumerate(tools):
        name, where = tool.function.name, f"{param}[{number}].function"
        if not _NAME.fullmatch(name):
            raise RequestError(
                f"{where}.name must be 1 to 64 letters, digits, _ or -, got {name[:80]!r}",
                param=f"{where}.name",
            )
        if name in found:
            raise RequestError(
                f"{where}.name {name!r} stands twice; give each tool its own", param=f"{where}.name"
            )
        parameters = tool.function.parameters
        if parameters is not None and parameters.get("type", "object") != "object":
            raise RequestError(
                f"{where}.parameters must be a schema of type object, got {parameters['type']!r}",
                param=f"{where}.parameters",
            )
        found[name] = Tool(
            name=name,
            description=tool.function.description,
            parameters=parameters,
            strict=bool(tool.function.strict),
        )
    return tuple(found.values())


def chosen_tools(tools: tuple[Tool, ...], choice: ToolChoice | None, is_parallel: bool | None) -> Choice:
    """What `tool_choice` leaves of the tools. Raises RequestError for a choice there is no tool for."""
    parallel = is_parallel is not False
    if choice in (None, "auto", "none"):
        return Choice(tools=() if choice == "none" else tools, is_parallel=parallel)
    if not tools:
        raise RequestError(
            "tool_choice asks for a call and there are no tools; send tools", param="tool_choice"
        )
    if choice == "required":
        return Choice(tools=tools, is_required=True, is_parallel=parallel)
    assert isinstance(choice, ToolChoiceObject)
    if choice.type == "function":
        if choice.function is None:
            raise RequestError("tool_choice of type function needs function.name", param="tool_choice")
        return Choice(tools=_named(tools, [choice.function.name]), is_required=True, is_parallel=False)
    allowed = choice.allowed_tools
    if allowed is None or not allowed.tools:
        raise RequestError(
            "tool_choice of type allowed_tools needs allowed_tools.tools", param="tool_choice.allowed_tools"
        )
    names = [one.function.name for one in allowed.tools]
    return Choice(tools=_named(tools, names), is_required=allowed.mode == "required", is_parallel=parallel)


def _named(tools: tuple[Tool, ...], names: Sequence[str]) -> tuple[Tool, ...]:
    known = {tool.name: tool for tool in tools}
    for name in names:
        if name not in known:
            raise RequestError(
                f"tool_choice names {name[:80]!r}, the tools are {', '.join(known)}", param="tool_choice"
            )
    return tuple(known[name] for name in dict.fromkeys(names))
