//! What stands below the options in the help of each command.

pub(super) const MAIN: &str = "\
Examples:
  holdfast daemon &                              start the daemon
  holdfast run --rootfs host -- echo hi          run a program, see its output
  holdfast run -d --name web --rootfs DIR -- PROGRAM
  holdfast ps                                    list what runs
  holdfast logs -f web                           follow the output
  holdfast stop web && holdfast rm web           end it, and delete it

`holdfast COMMAND --help` has more on each command. Ids that Holdfast has chosen
may be shortened as long as they are unique.";

pub(super) const RUN: &str = "\
Options come before the program; all that follows the program belongs to it.

In the foreground, run prints the output of the container, forwards signals and
exits with its status: 128+n for signal n, 125 when Holdfast itself failed, 126
when the program cannot be executed, 127 when it is not found, 141 when standard
output is closed (the container runs on). A third Ctrl-C in a row ends this
command and leaves the container running.

Logs: --log DRIVER[:PATH][,OPTION=VALUE...], several times for several logs.
Drivers: cri, json-file, file, fifo, journald, none. Options: max-size,
max-files, rate (lines per second), stderr=PATH, direct=yes (file), relay=yes,
buffer and backpressure=block|drop-oldest|spill (fifo). In PATH a comma is
written \\, and a backslash \\\\.

Examples:
  holdfast run --rm --rootfs host -- sh -c 'echo hi; exit 7'
  holdfast run -it --rootfs DIR -- sh            a shell
  holdfast run -d --name web -m 512m -v /srv:/srv:ro --rootfs DIR -- httpd
  holdfast run -d --bundle DIR                   what config.json says";

pub(super) const CREATE: &str = "\
Options come before the program; all that follows the program belongs to it.

Examples:
  holdfast create --name job --rootfs DIR -- make
  holdfast start job";

pub(super) const START: &str = "\
Examples:
  holdfast start web database
  holdfast start -ai shell           this run in the foreground, as `run` does";

pub(super) const STOP: &str = "\
The signal is that of `run --stop-signal`, or SIGTERM. SIGKILL follows after the
time of `run --stop-timeout`, or 10 seconds.

Examples:
  holdfast stop web
  holdfast stop -t 60 web db";

pub(super) const EXEC: &str = "\
The exit status is that of the process, as with `holdfast run`. The id of a
detached process works with wait, logs, kill, inspect and rm.

Examples:
  holdfast exec -it web sh
  holdfast exec -d -e MODE=fast -w /srv web ./job";

pub(super) const PS: &str = "\
Filters: id=BEGINNING, name=PART, label=NAME[=VALUE], exited=STATUS, until=TIME,
status=created|running|paused|exited, health=starting|healthy|unhealthy|none.
Fields of --format: ID, Command, CreatedAt, RunningFor, Status, State, Labels,
and all that `ps --json` shows.

Examples:
  holdfast ps -a --filter status=exited
  holdfast ps -q | xargs holdfast stop
  holdfast ps --format '{{.ID}} {{.Status}}'
  holdfast ps --format 'table {{.ID}}\\t{{.Pid}}'";

pub(super) const INSPECT: &str = "\
`config` is the OCI configuration, `record` is what Holdfast has on disk.

Examples:
  holdfast inspect web
  holdfast inspect -f '{{.Status}} {{.Pid}}' web
  holdfast inspect -f '{{json .config.mounts}}' web";

pub(super) const WAIT: &str = "\
Prints one status per line. Containers that were removed are known, too.
Conditions: stopped (default), next-exit, removed, running.
The exit status is 124 if the time is over.

Examples:
  holdfast wait job
  holdfast wait --condition running --timeout 10s web";

pub(super) const KILL: &str = "\
Examples:
  holdfast kill web                              SIGKILL
  holdfast kill -9 web
  holdfast kill -s HUP web
  holdfast kill -TERM web";

pub(super) const LOGS: &str = "\
Times: 2026-01-31T12:00:00Z, 2026-01-31T12:00:00 (local time), 2026-01-31,
seconds since 1970, or a duration: 10m is ten minutes ago.

Examples:
  holdfast logs -f --tail 20 web
  holdfast logs --since 10m --until 5m web";

pub(super) const STATS: &str = "\
MEM is without page cache that was not used lately. BLOCK I/O is read / written,
NET I/O received / sent by a network of the container's own, without loopback.
Where standard output is not a terminal, the table is printed once. Fields of
--format: ID, CPUPerc, MemUsage, MemPerc, NetIO, BlockIO, PIDs, all of --json.

Examples:
  holdfast stats
  holdfast stats --no-stream --format '{{.ID}} {{.CPUPerc}}' web";

pub(super) const TOP: &str = "\
Examples:
  holdfast top web
  holdfast top web -o pid,user,etime,args
  holdfast top web aux";

pub(super) const CP: &str = "\
Links in the container lead nowhere outside of it. Devices, FIFOs and sockets
are not copied, nor are set-user-ID bits. Copied files belong to root unless
--archive is given. A SRC directory that ends with /. stands for its content.

Examples:
  holdfast cp web:/var/log/app.log .
  holdfast cp conf/. web:/etc/app/";

pub(super) const EVENTS: &str = "\
Filters: container=ID, event=NAME. Times are those of `holdfast logs`.

Examples:
  holdfast events --filter event=exited
  holdfast events --since 1h --until 0s --format '{{.Time}} {{.ID}} {{.Action}}'";

pub(super) const RM: &str = "\
Examples:
  holdfast rm job
  holdfast rm -f web                             kill it first";

pub(super) const PRUNE: &str = "\
Filters: those of `holdfast ps`.

Examples:
  holdfast prune -f --filter until=24h";

pub(super) const COMPLETION: &str = "\
Examples:
  holdfast completion bash > /etc/bash_completion.d/holdfast
  source <(holdfast completion zsh)";
