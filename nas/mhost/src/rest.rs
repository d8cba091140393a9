//! The REST interface: `/api/v1/...` and `/metrics`, on loopback or a Unix socket, with a token.
//!
//! Layer: the edge to the administrator; it only checks, calls the M-host and shows. Bodies are
//! typed and refuse unknown fields; every error is `{"error": .., "what_to_do": ..}`.

mod guard;
mod handlers;
mod prometheus;
mod token;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use cairn_sys::Clock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::error::ApiError;
use crate::mhost::MHost;
use guard::{Guarding, Of};

pub use guard::{CONNECTIONS_MAX, REQUEST_TIME, SEND_TIME};
pub use token::{Token, TokenError};

/// Longest request body.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Whether the counters are shown without the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsAccess {
    /// Only with the token.
    #[default]
    Token,
    /// To everybody who reaches the address.
    Open,
}

#[derive(Clone)]
struct Gate {
    token: Token,
    metrics: MetricsAccess,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(self)).into_response()
    }
}

/// A JSON body of type `T`, or 400 in our own form.
struct Input<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Input<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = bytes::Bytes::from_request(request, state).await.map_err(|e| {
            ApiError::bad(format!("the body could not be read: {e}"), "send a smaller body")
        })?;
        serde_json::from_slice(&body).map(Input).map_err(|e| {
            ApiError::bad(
                format!("the body makes no sense: {e}"),
                "send JSON as /api/v1/openapi.json describes it",
            )
        })
    }
}

/// Query parameters of type `T`, or 400 in our own form.
struct Params<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::try_from_uri(&parts.uri).map(|q| Params(q.0)).map_err(|e| {
            ApiError::bad(
                format!("the query makes no sense: {e}"),
                "see /api/v1/openapi.json for its parameters",
            )
        })
    }
}

/// For fuzzers: any text as a path with a query.
pub(crate) fn fuzz_query(bytes: &[u8]) {
    if let Ok(uri) = axum::http::Uri::try_from(bytes) {
        let parsed = axum::extract::Query::<handlers::ExplainParams>::try_from_uri(&uri);
        drop(parsed);
    }
}

async fn gate(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let open = gate.metrics == MetricsAccess::Open && request.uri().path() == "/metrics";
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    if !open && !given.is_some_and(|text| gate.token.matches(text)) {
        let refused = ApiError::new(
            401,
            "the token is missing or wrong",
            "send the header `Authorization: Bearer TOKEN` with the contents of the token file",
        );
        return ([(header::WWW_AUTHENTICATE, "Bearer")], refused).into_response();
    }
    next.run(request).await
}

async fn no_such_resource(request: Request<Body>) -> ApiError {
    ApiError::missing(
        format!("no such resource: {}", request.uri().path()),
        "/api/v1/openapi.json lists the resources",
    )
}

async fn no_such_method(request: Request<Body>) -> ApiError {
    ApiError::new(
        405,
        format!("{} cannot be done with {}", request.method(), request.uri().path()),
        "/api/v1/openapi.json lists what can be done",
    )
}

/// The router with every resource.
pub fn router(mhost: Arc<MHost>, token: Token, metrics: MetricsAccess) -> Router {
    let v1 = Router::new()
        .route("/openapi.json", get(handlers::openapi))
        .route("/status", get(handlers::status))
        .route("/disks", get(handlers::disks).post(handlers::add_disks))
        .route("/disks/{disk}/fail", post(handlers::fail_disk))
        .route("/disks/{disk}/replace", post(handlers::replace_disk))
        .route("/aggregates", get(handlers::aggregates))
        .route("/aggregates/groups", post(handlers::add_group))
        .route("/aggregates/groups/{group}/grow", post(handlers::grow_group))
        .route("/aggregates/groups/{group}/raid-type", put(handlers::set_raid_type))
        .route("/aggregates/consistency-point", post(handlers::consistency_point))
        .route("/volumes", get(handlers::volumes).post(handlers::create_volume))
        .route(
            "/volumes/{name}",
            get(handlers::volume).patch(handlers::change_volume).delete(handlers::delete_volume),
        )
        .route("/exports", get(handlers::exports))
        .route("/exports/{volume}", get(handlers::export).put(handlers::set_export))
        .route("/jobs", get(handlers::jobs))
        .route("/jobs/{id}", get(handlers::job))
        .route("/scrub", get(handlers::scrub).post(handlers::start_scrub))
        .route("/check", get(handlers::check).post(handlers::start_check))
        .route("/scrub/schedule", put(handlers::set_scrub_schedule))
        .route("/explain", get(handlers::explain))
        .route("/counters", get(handlers::counters));
    Router::new()
        .nest("/api/v1", v1)
        .route("/metrics", get(handlers::metrics))
        .fallback(no_such_resource)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(guard::whole_request))
        // Outermost: who has no token is not listened to.
        .layer(middleware::from_fn_with_state(Gate { token, metrics }, gate))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(mhost)
}

/// Where REST listens.
pub enum RestListener {
    /// TCP on loopback.
    Tcp(tokio::net::TcpListener),
    /// A Unix socket.
    Unix(tokio::net::UnixListener),
}

/// Serves until `stop` becomes true. Connections are bounded in number and patience, see
/// [`CONNECTIONS_MAX`].
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: RestListener,
    router: Router,
    clock: Arc<dyn Clock>,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let stopped = async move {
        // A closed channel means that whoever could stop us is gone: stop as well.
        if stop.wait_for(|s| *s).await.is_err() {
            tracing::debug!("REST stops with its owner");
        }
    };
    let make = router.into_make_service_with_connect_info::<Of>();
    match listener {
        RestListener::Tcp(l) => {
            axum::serve(Guarding::new(l, clock), make).with_graceful_shutdown(stopped).await
        }
        RestListener::Unix(l) => {
            axum::serve(Guarding::new(l, clock), make).with_graceful_shutdown(stopped).await
        }
    }
}
