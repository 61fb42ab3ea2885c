//! What any client needs: channels, calls that are tried again, uploads, watches, and errors in one
//! line.
use std::{env, error::Error, fmt, fs, path::Path, time::Duration};

use tokio::time::sleep;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::StatusExt;

use api::{Asset, AssetKind, UploadDeclaration, UploadHead, UploadRequest};
use api::{upload_request::Part, upload_service_client::UploadServiceClient};

#[allow(clippy::all, dead_code, rustdoc::all)]
mod stubs {
    include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
}

/// The contract, as one module.
pub mod api {
    // Other packages have enums of these names, too.
    pub use super::stubs::atelier::techfiles::v1::{RunState, ViewType};
    pub use super::stubs::atelier::{assets::v1::*, common::v1::*, conversions::v1::*};
    pub use super::stubs::atelier::{pipeline::v1::*, techfiles::v1::*};
}

pub type Answer<T> = Result<Response<T>, Status>;
pub type Connection = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

/// How a call ends that finds no server, or one that is about to stop, or that loses it.
const AWAY: [Code; 3] = [Code::Unavailable, Code::Cancelled, Code::Unknown];

/// A watch that ends so would end so again.
const FINAL: [Code; 5] = [
    Code::OutOfRange,
    Code::Unauthenticated,
    Code::PermissionDenied,
    Code::InvalidArgument,
    Code::NotFound,
];

/// Every call has the token and a deadline.
fn prepare(mut request: Request<()>) -> Result<Request<()>, Status> {
    let bearer = format!("Bearer {}", env::var("ATELIER_TOKEN").unwrap_or_default());
    let bearer = bearer.parse().map_err(|_| Status::unauthenticated("no token to send"))?;
    request.metadata_mut().insert("authorization", bearer);
    request.set_timeout(Duration::from_secs(300));
    Ok(request)
}

/// To the address in an environment variable.
pub fn connect(variable: &str, usual: &str) -> Result<Connection, Failure> {
    let address = env::var(variable).unwrap_or(usual.to_string());
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
    Ok(InterceptedService::new(channel, prepare))
}

pub fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Repeats a call when the server is away. With its request_id, that makes nothing twice.
pub async fn again<A>(call: impl AsyncFn() -> Answer<A>) -> Result<A, Status> {
    let mut tries = 1;
    loop {
        match call().await {
            Err(status) if AWAY.contains(&status.code()) && tries < 5 => {
                sleep(Duration::from_millis(500 << tries)).await;
                tries += 1;
            }
            answer => return answer.map(Response::into_inner),
        }
    }
}

/// `call!(client.method(request))` does so; each try takes a copy of the request.
macro_rules! call {
    ($client:ident.$method:ident($request:expr)) => {
        $crate::client::again(async || $client.clone().$method($request.clone()).await)
    };
}
pub(crate) use call;

/// Sends a file in one stream.
pub async fn upload(to: &Connection, path: &str, kind: AssetKind) -> Result<Asset, Failure> {
    let data = fs::read(path)?;
    let declaration = UploadDeclaration {
        kind: kind.into(),
        file_name: Path::new(path).file_name().unwrap_or_default().to_string_lossy().into(),
        mime_type: "image/jpeg".into(),
        size_bytes: data.len() as i64,
        ..Default::default()
    };
    let head = UploadHead { request_id: new_id(), declaration: Some(declaration) };
    let mut parts = vec![UploadRequest { part: Some(Part::Head(head)) }];
    for chunk in data.chunks(256 * 1024) {
        parts.push(UploadRequest { part: Some(Part::Chunk(chunk.to_vec())) });
    }
    let uploads = UploadServiceClient::new(to.clone());
    let answer = again(async || uploads.clone().upload(tokio_stream::iter(parts.clone())).await);
    Ok(answer.await?.asset.unwrap_or_default())
}

/// A stream. Whatever ends it, unless that would come again, it is asked for again with the last
/// cursor.
pub struct Watch<A, O: AsyncFn(String) -> Answer<Streaming<A>>> {
    open: O,
    stream: Option<Streaming<A>>,
    cursor: String,
}

impl<A, O: AsyncFn(String) -> Answer<Streaming<A>>> Watch<A, O> {
    pub fn new(open: O) -> Self {
        Self { open, stream: None, cursor: String::new() }
    }

    /// Where to go on.
    pub fn keep(&mut self, cursor: String) {
        if !cursor.is_empty() {
            self.cursor = cursor;
        }
    }

    pub async fn next(&mut self) -> Result<A, Failure> {
        loop {
            if let Err(status) = self.try_open().await
                && FINAL.contains(&status.code())
            {
                return Err(status.into());
            }
            if let Some(stream) = &mut self.stream {
                match stream.message().await {
                    Ok(Some(item)) => return Ok(item),
                    Err(status) if FINAL.contains(&status.code()) => return Err(status.into()),
                    _ => self.stream = None,
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn try_open(&mut self) -> Result<(), Status> {
        if self.stream.is_none() {
            self.stream = Some((self.open)(self.cursor.clone()).await?.into_inner());
        }
        Ok(())
    }
}

/// Repeats a call with `wait` until its job has ended: a server that stops, or a deadline that
/// comes, answers before. The same request waits on.
pub async fn finished<J: fmt::Debug, S: PartialOrd>(
    completed: S,
    state: fn(&J) -> S,
    call: impl AsyncFn() -> Result<J, Failure>,
) -> Result<J, Failure> {
    loop {
        let job = call().await?;
        if state(&job) == completed {
            return Ok(job);
        } else if state(&job) > completed {
            return Err(Failure(format!("{job:?}"))); // what else a job can end as
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// In one line what went wrong, with what the details of a status say.
pub fn explain(status: &Status) -> String {
    let mut line = format!("{:?}: {}", status.code(), status.message());
    let details = status.get_error_details();
    if let Some(info) = details.error_info() {
        line += &format!(" [{} {:?}]", info.reason, info.metadata);
    }
    for wrong in details.bad_request().iter().flat_map(|bad| &bad.field_violations) {
        line += &format!(" [{}: {}]", wrong.field, wrong.description);
    }
    line
}

/// What main ends with, and shows.
pub struct Failure(pub String);

pub fn check(good: bool, text: &str) -> Result<(), Failure> {
    if good { Ok(()) } else { Err(Failure(text.to_string())) }
}

impl fmt::Debug for Failure {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let status = (&error as &dyn Error).downcast_ref::<Status>();
        Self(status.map_or_else(|| error.to_string(), explain))
    }
}
