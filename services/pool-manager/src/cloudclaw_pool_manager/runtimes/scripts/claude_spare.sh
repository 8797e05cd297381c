# Keeps a spare Claude Code waiting: "$@" is its command line. What comes on standard input later:
#   line 1    variables of the task, as shell
#   line 2    the request by which the spare takes up its session
#   the rest  messages for it
# A spare cannot take up a folder whose settings it would have read at its start; then one is started anew.
pipe=/tmp/.claw-spare
mkfifo -m 600 "$pipe" || exit 1
"$@" --await-claim <"$pipe" &
agent=$!
exec 3>"$pipe" 4<&0
rm -f "$pipe"
printf '%s\n' '{"type":"control_request","request_id":"warm","request":{"subtype":"initialize"}}' >&3
IFS= read -r variables || exit 0
IFS= read -r claim || exit 0
cd /workspace || exit 1
for file in "$HOME/.claude/settings.json" .claude/settings.json .claude/settings.local.json .mcp.json; do
  [ -e "$file" ] || continue
  exec 3>&-
  kill -9 "$agent" 2>/dev/null
  wait "$agent" 2>/dev/null
  unset CLAUDE_ENV_FILE
  eval "$variables"
  exec "$@"
done
printf '%s\n' "$variables" >"$CLAUDE_ENV_FILE"
printf '%s\n' "$claim" >&3
cat <&4 >&3 &
feeder=$!
exec 3>&- 4<&-
trap 'kill -TERM "$agent" 2>/dev/null' TERM INT
wait "$agent"
code=$?
while kill -0 "$agent" 2>/dev/null; do
  wait "$agent"
  code=$?
done
kill "$feeder" 2>/dev/null
exit "$code"
