//! ONC RPC over TCP: XDR, records, server loop, reply cache.
