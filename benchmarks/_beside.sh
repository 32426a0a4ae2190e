# Programs side by side; sourced. They end with the script, however it ends: by itself, where one of them fails (set -e), by a
# signal or by Ctrl-C, which bash keeps from what a script starts with `&`.
# shellcheck shell=bash
groups=()
# beside WORD...: a program or a function, in a process group of its own; its process is $!.
beside() {
  set -m
  "$@" </dev/null &
  set +m
  groups+=("-$!")
}
# At exit; a script with more to do then calls it from its own trap.
end_beside() {
  ((${#groups[@]} > 0)) || return 0
  # A shell that has just been forked loses a signal: again, as long as some are there.
  local pause
  for pause in 0.1 0.1 0.1 0.1 0.1 1 1 1 10 20; do
    kill -- "${groups[@]}" 2>/dev/null || return 0
    sleep "$pause"
  done
  kill -KILL -- "${groups[@]}" 2>/dev/null || return 0
}
trap end_beside EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
