# The whole policy of namespace mode, root-owned. No include: nothing of the worker's home, of /etc/firejail or
# of the user's is read. The root helper made the file-system view, the network, IPC and mount namespaces before
# firejail starts; firejail adds its own mount, PID, UTS and user namespaces, seccomp and capability filters.
quiet
caps.drop all
nonewprivs
noroot
nogroups
seccomp
seccomp.block-secondary
allow-debuggers
restrict-namespaces
protocol unix,inet,inet6,netlink
ipc-namespace
private-dev
allusers
nodvd
noinput
noprinters
nosound
notv
nou2f
novideo
no3d
dbus-user none
dbus-system none
deterministic-exit-code
