"""Completion of the command line in bash, zsh and fish: `jaxformer completion SHELL` prints a script for the shell."""

from jaxformer import chat_command, config_files
from jaxformer.command_arguments import Parser
from jaxformer.decoding_options import DECODING, SAMPLING, SEARCH, SPEAKING, TRANSCRIBING

WRITING = tuple(dict.fromkeys((*DECODING, *SEARCH, *SAMPLING, *TRANSCRIBING, *SPEAKING, "num_samples")))
CHATTING = chat_command.OPTIONS
WEIGHTS = ("dtype", "no-certificate")
OPTIONS: dict[str, tuple[str, ...]] = {
    "new": (),
    "train": ("workdir", "profile", "report", "no-self-check", "accept-changed-data", "skip-bad-records"),
    "launch": (),
    "plan": ("topology", "price", "search", "compiled", "json"),
    "evaluate": ("name", "all", "step"),
    "predict": ("input", "among", "json", "out", "rank-by", "keep", "vocoder", "step", *WRITING),
    "chat": ("system", "template", "step", *CHATTING),
    "assistant": ("listen", "think", "speak", "vocoder", "replies", "json", "out"),
    "export": ("format", "step", *WEIGHTS),
    "import": WEIGHTS,
    "report": ("out", "open", "no-examples", "step"),
    "explain": ("out", "label", "open", "step"),
    "runs": ("metric", "sort", "reverse", "compare", "json"),
    "verify": (),
    "drill": ("only", "count"),
    "replay": ("step", "rows"),
    "completion": (),
}
"""Maps each command to the names of its options, without those of all commands (`COMMON`)."""
COMMON = ("allow", "help")
"""Names of the options that all commands have."""
CONFIGS = ("train", "launch", "plan", "drill")
"""Commands whose argument may be the name of a config that comes with jaxformer."""
SHELLS = ("bash", "zsh", "fish")

BASH = """# Completion of jaxformer for bash. To use it: eval "$(jaxformer completion bash)"
_jaxformer() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands} --help --version" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
    *) COMPREPLY=($(compgen -f -- "$current"))
      case "${{COMP_WORDS[1]}}" in
        {configs}) COMPREPLY+=($(compgen -W "{names}" -- "$current")) ;;
        completion) COMPREPLY=($(compgen -W "{shells}" -- "$current")) ;;
      esac ;;
  esac
}}
complete -o filenames -F _jaxformer jaxformer
"""


def script(shell: str) -> str:
    """Returns the completion script for a shell, `bash`, `zsh` or `fish`."""
    if shell == "fish":
        return _fish()
    cases = "\n".join(f'    {command}) words="{" ".join(_flags(command))}" ;;' for command in OPTIONS)
    bash = BASH.format(
        commands=" ".join(OPTIONS),
        cases=cases,
        configs="|".join(CONFIGS),
        names=" ".join(config_files.named()),
        shells=" ".join(SHELLS),
    )
    if shell == "bash":
        return bash
    first = '# Completion of jaxformer for zsh. To use it: eval "$(jaxformer completion zsh)"'
    return f"{first}\nautoload -Uz compinit bashcompinit && compinit && bashcompinit\n{bash.partition(chr(10))[2]}"


def completion(arguments: list[str]) -> None:
    """Runs `jaxformer completion`: prints the completion script of a shell."""
    parser = Parser("completion", 'Prints a script that completes commands: eval "$(jaxformer completion bash)".')
    parser.add_argument("shell", choices=SHELLS, help="the shell; for fish: jaxformer completion fish | source")
    print(script(parser.parse(arguments).shell), end="")


def _flags(command: str) -> list[str]:
    return [f"--{name}" for name in (*OPTIONS[command], *COMMON)]


def _fish() -> str:
    lines = ["# Completion of jaxformer for fish. To use it: jaxformer completion fish | source"]
    lines += [f"complete -c jaxformer -n __fish_use_subcommand -f -a {command}" for command in OPTIONS]
    for command in OPTIONS:
        seen = f'-n "__fish_seen_subcommand_from {command}"'
        lines += [f"complete -c jaxformer {seen} -l {name}" for name in (*OPTIONS[command], *COMMON)]
        if command in CONFIGS:
            lines.append(f'complete -c jaxformer {seen} -a "{" ".join(config_files.named())}"')
    lines.append(f'complete -c jaxformer -n "__fish_seen_subcommand_from completion" -f -a "{" ".join(SHELLS)}"')
    return "\n".join(lines) + "\n"
