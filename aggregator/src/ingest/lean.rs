//! The stream of an agent as cheap as what it carries: a sample of some 200 bytes now and then, and an
//! acknowledgement of some 20.
//!
//! tonic's own stream keeps a buffer of 8 KiB for each direction, and one that grows to the largest message and stays
//! so; there are as many streams as hosts. Here a message is decoded where it lies in what HTTP/2 received, and only
//! one that comes in pieces is gathered, for as long as it takes. Everything else of the service is served by the
//! generated code.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use muster_proto::{
    limits,
    v1::{
        self,
        uplink_server::{SERVICE_NAME, UplinkServer},
    },
};
use prost::Message as _;
use tonic::{
    Code, Status,
    body::Body,
    codec::{BufferSettings, EncodeBody, SingleMessageCompressionOverride},
    codegen::{BoxFuture, Service, http},
    metadata::GRPC_CONTENT_TYPE,
    server::NamedService,
};
use tonic_prost::ProstEncoder;

use super::UplinkService;

/// The stream's path.
const SESSION: &str = "/muster.v1.Uplink/Session";

/// Bytes that stand before each message: whether it is compressed, and its length.
const HEADER: usize = 5;

/// Bytes for what is sent until a message needs more: several acknowledgements.
const SEND_BUFFER: usize = 256;

/// Bytes gathered before they are handed on, as tonic has it.
const HAND_ON: usize = 32 * 1024;

/// The uplink's service at its door.
#[derive(Clone)]
pub struct Door {
    service: UplinkService,
    rest: UplinkServer<UplinkService>,
}

impl Door {
    /// Serves `service`.
    #[must_use]
    pub fn new(service: UplinkService) -> Self {
        Self {
            rest: UplinkServer::new(service.clone())
                .max_decoding_message_size(limits::MAX_UPLINK_MESSAGE_BYTES)
                .max_encoding_message_size(limits::MAX_DOWNLINK_MESSAGE_BYTES),
            service,
        }
    }
}

impl NamedService for Door {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for Door {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != SESSION {
            return self.rest.call(request);
        }
        let service = self.service.clone();
        Box::pin(async move { Ok(session(&service, request)) })
    }
}

fn session(service: &UplinkService, request: http::Request<Body>) -> http::Response<Body> {
    let (head, body) = request.into_parts();
    let outbound = match service.serve(&head.extensions, Messages::of(body)) {
        Ok(outbound) => outbound,
        Err(status) => return status.into_http(),
    };
    let encoder = ProstEncoder::new(BufferSettings::new(SEND_BUFFER, HAND_ON));
    let body = EncodeBody::new_server(
        encoder,
        outbound,
        None,
        SingleMessageCompressionOverride::Disable,
        Some(limits::MAX_DOWNLINK_MESSAGE_BYTES),
    );
    let mut response = http::Response::new(Body::new(body));
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// The messages of a request.
pub(super) struct Messages<B> {
    body: B,
    /// What was received last and not looked at.
    chunk: Bytes,
    /// The beginning of a message whose end is to come.
    begun: Vec<u8>,
    ended: bool,
}

impl<B> Messages<B> {
    fn of(body: B) -> Self {
        Self {
            body,
            chunk: Bytes::new(),
            begun: Vec::new(),
            ended: false,
        }
    }

    /// The next message of what is here; `None` if it is not here whole.
    fn next_here(&mut self) -> Result<Option<v1::AgentMessage>, Status> {
        if !self.begun.is_empty() {
            // No further than this message: what follows stays where it lies.
            loop {
                let all = length(&self.begun)?;
                if all == Some(self.begun.len()) {
                    let begun = std::mem::take(&mut self.begun);
                    return decode(&begun[HEADER..]).map(Some);
                }
                let missing = all.unwrap_or(HEADER) - self.begun.len();
                let more = missing.min(self.chunk.len());
                if more == 0 {
                    return Ok(None);
                }
                self.begun.extend_from_slice(&self.chunk[..more]);
                self.chunk.advance(more);
            }
        }
        match length(&self.chunk)? {
            Some(all) if all <= self.chunk.len() => {
                let message = decode(&self.chunk[HEADER..all])?;
                self.chunk.advance(all);
                Ok(Some(message))
            }
            _ => {
                self.begun = self.chunk.to_vec();
                self.chunk = Bytes::new();
                Ok(None)
            }
        }
    }
}

/// Bytes of a message with its header, once that is here.
fn length(bytes: &[u8]) -> Result<Option<usize>, Status> {
    let Some((&[compressed, a, b, c, d], _)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    if compressed != 0 {
        return Err(Status::internal("messages are not to be compressed"));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > limits::MAX_UPLINK_MESSAGE_BYTES {
        return Err(Status::out_of_range(format!(
            "a message of {length} bytes; at most {} are read",
            limits::MAX_UPLINK_MESSAGE_BYTES
        )));
    }
    Ok(Some(HEADER + length))
}

fn decode(bytes: &[u8]) -> Result<v1::AgentMessage, Status> {
    v1::AgentMessage::decode(bytes).map_err(|error| Status::internal(error.to_string()))
}

impl<B> Stream for Messages<B>
where
    B: hyper::body::Body<Data = Bytes, Error = Status> + Unpin,
{
    type Item = Result<v1::AgentMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            match self.next_here() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(status) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                // The agent let go of the stream.
                Some(Err(status)) if status.code() == Code::Cancelled => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
                Some(Err(status)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
                None => {
                    self.ended = true;
                    if self.begun.is_empty() {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Err(Status::internal("it ended within a message"))));
                }
            };
            if let Ok(data) = frame.into_data() {
                self.chunk = data;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    fn message(seq: u64, payload: usize) -> v1::AgentMessage {
        v1::AgentMessage {
            message: Some(v1::agent_message::Message::Frame(v1::Frame {
                seq,
                payload: vec![7; payload],
                ..v1::Frame::default()
            })),
        }
    }

    fn framed(message: &v1::AgentMessage) -> Vec<u8> {
        let body = message.encode_to_vec();
        let length = u32::try_from(body.len()).expect("small");
        let mut out = vec![0];
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&body);
        out
    }

    async fn read(chunks: Vec<Vec<u8>>) -> Vec<Result<v1::AgentMessage, Code>> {
        let frames = chunks
            .into_iter()
            .map(|chunk| Ok::<_, Status>(Frame::data(Bytes::from(chunk))));
        let messages = Messages::of(StreamBody::new(stream::iter(frames)));
        let all: Vec<Result<v1::AgentMessage, Status>> = messages.collect().await;
        all.into_iter()
            .map(|one| one.map_err(|status| status.code()))
            .collect()
    }

    #[tokio::test]
    async fn messages_come_in_whatever_pieces() {
        let sent = [
            message(1, 0),
            message(2, 300),
            message(3, 5_000),
            message(4, 20),
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(framed).collect();
        let expected: Vec<_> = sent.into_iter().map(Ok).collect();
        for piece in (1..40).chain([299, 4_096, bytes.len()]) {
            let chunks = bytes.chunks(piece).map(<[u8]>::to_vec).collect();
            assert_eq!(read(chunks).await, expected, "pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_stream() {
        let good = framed(&message(1, 9));
        let too_long = [0, 0xff, 0xff, 0xff, 0xff].to_vec();
        let compressed = [1, 0, 0, 0, 1, 0].to_vec();
        let garbage = [0, 0, 0, 0, 2, 0xff, 0xff].to_vec();
        for (what, bytes, code) in [
            ("too long", too_long, Code::OutOfRange),
            ("compressed", compressed, Code::Internal),
            ("garbage", garbage, Code::Internal),
            ("cut off", good[..7].to_vec(), Code::Internal),
        ] {
            let mut all = good.clone();
            all.extend_from_slice(&bytes);
            all.extend_from_slice(&good);
            let chunks = if what == "cut off" {
                vec![good.clone(), bytes]
            } else {
                vec![all]
            };
            let expected = [Ok(message(1, 9)), Err(code)];
            assert_eq!(read(chunks).await, expected, "{what}");
        }
    }
}
