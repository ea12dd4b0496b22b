//! The lines of `/proc/net/{tcp,udp}` and their IPv6 sisters: one for each socket.

use super::text;

/// What is taken of a line; addresses are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// State, as in the kernel's tcp_states.h.
    pub state: u64,
    /// Bytes that wait to be sent.
    pub send_queue: u64,
    /// Bytes that wait to be read.
    pub receive_queue: u64,
}

/// The sockets of a file, without its line of headings; `None` for a line that is none.
pub fn parse(bytes: &[u8]) -> impl Iterator<Item = Option<Socket>> {
    text::lines(bytes).skip(1).map(socket)
}

/// `sl local remote st tx_queue:rx_queue …`, hexadecimal.
fn socket(line: &[u8]) -> Option<Socket> {
    let mut fields = text::fields(line).skip(3);
    let state = text::hexadecimal(fields.next()?)?;
    let queues = fields.next()?;
    let colon = queues.iter().position(|&byte| byte == b':')?;
    Some(Socket {
        state,
        send_queue: text::hexadecimal(&queues[..colon])?,
        receive_queue: text::hexadecimal(&queues[colon + 1..])?,
    })
}
