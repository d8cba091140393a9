//! NFS version 3, MOUNT, rpcbind.
