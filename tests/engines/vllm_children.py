"""vLLM's processes below this one."""

import psutil


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def engine_cores() -> set[psutil.Process]:
    """vLLM's processes below this one."""
    return {
        process
        for process in psutil.Process().children(recursive=True)
        if any(name in command_line(process) for name in ("EngineCore", "spawn_main", "VLLM::Worker"))
    }
