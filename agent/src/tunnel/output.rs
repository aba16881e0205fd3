//! Where a shard puts what it makes: straight into the buffers that go out, so that nothing is copied or
//! allocated for a packet.

use super::{
    TunnelEvent,
    path::Path,
    shards::{Misdelivered, Number},
};

/// Receives datagrams, packets and events in the order in which they are made.
pub(super) trait Output {
    /// Room of at least `size` bytes for a datagram. What was there is lost unless [`send`](Self::send) follows.
    fn datagram(&mut self, to: Path, size: usize) -> &mut [u8];

    /// Sends the first `length` bytes of the room last asked for.
    fn send(&mut self, length: usize);

    /// Room of at least `size` bytes for an inner packet. What was there is lost unless
    /// [`deliver`](Self::deliver) follows.
    fn packet(&mut self, size: usize) -> &mut [u8];

    /// Hands the first `length` bytes of the room last asked for to the TUN device.
    fn deliver(&mut self, length: usize);

    /// Tells the owner.
    fn event(&mut self, event: TunnelEvent);

    /// Hands to another shard what is its.
    fn hand_over(&mut self, to: Number, stray: Misdelivered);
}
