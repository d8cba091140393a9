//! REST over real HTTP on a port that the system chooses.

#![expect(clippy::unwrap_used, reason = "test helpers outside test functions")]

use std::os::unix::fs::PermissionsExt;

use crate::common::{FakeNode, TempDir, start};
use cairn_mhost::rest::{MetricsAccess, RestListener, Token, TokenError, router, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Server {
    addr: std::net::SocketAddr,
    token: String,
}

impl Server {
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let (status, text) = self.raw(method, path, body, Some(&self.token)).await;
        (status, serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)))
    }

    async fn raw(
        &self,
        method: &str,
        path: &str,
        body: &str,
        token: Option<&str>,
    ) -> (u16, String) {
        let auth = token.map_or(String::new(), |t| format!("Authorization: Bearer {t}\r\n"));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn job(&self, answer: (u16, serde_json::Value)) -> serde_json::Value {
        assert_eq!(answer.0, 202, "{}", answer.1);
        loop {
            let (status, job) =
                self.ask("GET", &format!("/api/v1/jobs/{}", answer.1["id"]), "").await;
            assert_eq!(status, 200);
            if job["state"] != "running" {
                return job;
            }
        }
    }
}

fn with_server(name: &str, metrics: MetricsAccess, work: impl AsyncFnOnce(Server)) {
    let dir = TempDir::new(name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = cairn_sys::real::world(runtime.handle().clone()).unwrap();
    runtime.block_on(async {
        let node = FakeNode::new(&world);
        let (mhost, _) = start(&dir, &world, &node).await;
        let token = Token::load_or_create(&dir.0.join("token"), &world).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server { addr: listener.local_addr().unwrap(), token: token.as_str().into() };
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let router = router(mhost.clone(), token, metrics);
        let serving = serve(RestListener::Tcp(listener), router, world.clock.clone(), stopped);
        let client = async {
            work(server).await;
            stop.send_replace(true);
        };
        let (served, ()) = tokio::join!(serving, client);
        served.unwrap();
        mhost.stop().await;
    });
}

#[test]
fn nothing_answers_without_the_token() {
    with_server("token", MetricsAccess::Token, async |server| {
        let resources = ["status", "disks", "volumes", "exports", "jobs", "openapi.json", "nope"];
        let paths = resources.map(|r| format!("/api/v1/{r}"));
        for path in paths.iter().map(String::as_str).chain(["/metrics", "/"]) {
            for token in [None, Some(""), Some("0"), Some(&server.token[1..])] {
                let (status, body) = server.raw("GET", path, "", token).await;
                assert_eq!(status, 401, "{path} {token:?}");
                assert!(body.contains("what_to_do"), "{body}");
            }
        }
        let (status, _) = server.raw("DELETE", "/api/v1/volumes/v", "", None).await;
        assert_eq!(status, 401);
    });
}

#[test]
fn metrics_can_be_opened_and_nothing_else_with_them() {
    with_server("open", MetricsAccess::Open, async |server| {
        assert_eq!(server.raw("GET", "/metrics", "", None).await.0, 200);
        assert_eq!(server.raw("GET", "/api/v1/counters", "", None).await.0, 401);
        assert_eq!(server.raw("GET", "/metrics/", "", None).await.0, 401);
    });
}

#[test]
fn volume_is_made_exported_resized_renamed_and_deleted() {
    with_server("life", MetricsAccess::Token, async |server| {
        let body = r#"{"name":"v1","size_bytes":1073741824}"#;
        let job = server.job(server.ask("POST", "/api/v1/volumes", body).await).await;
        assert_eq!((job["state"].as_str(), job["steps_done"].as_u64()), (Some("done"), Some(2)));
        let (_, volumes) = server.ask("GET", "/api/v1/volumes", "").await;
        assert_eq!(volumes[0]["junction"], "/v1");
        assert_eq!(volumes[0]["vserver"], "default");

        let rules = r#"{"rules":[{"clients":"10.0.0.0/8","access":"ro"}]}"#;
        let (status, export) = server.ask("PUT", "/api/v1/exports/v1", rules).await;
        assert_eq!((status, export["rules"][0]["squash"].as_str()), (200, Some("root")));
        let bad = r#"{"rules":[{"clients":"everybody"}]}"#;
        let (status, refused) = server.ask("PUT", "/api/v1/exports/v1", bad).await;
        assert_eq!(status, 400);
        assert!(refused["what_to_do"].as_str().unwrap().contains("10.0.0.0/8"), "{refused}");

        let resize =
            server.ask("PATCH", "/api/v1/volumes/v1", r#"{"size_bytes":2147483648}"#).await;
        assert_eq!(server.job(resize).await["state"], "done");
        let rename = server.ask("PATCH", "/api/v1/volumes/v1", r#"{"name":"v2"}"#).await;
        assert_eq!(server.job(rename).await["state"], "done");
        let (_, volume) = server.ask("GET", "/api/v1/volumes/v2", "").await;
        assert_eq!(
            (volume["size_bytes"].as_u64(), volume["junction"].as_str()),
            (Some(2 << 30), Some("/v1"))
        );
        let gone = server.ask("DELETE", "/api/v1/volumes/v2", "").await;
        assert_eq!(server.job(gone).await["state"], "done");
        assert_eq!(server.ask("GET", "/api/v1/volumes/v2", "").await.0, 404);
    });
}

#[test]
fn requests_that_make_no_sense_are_refused_with_advice() {
    with_server("bad", MetricsAccess::Token, async |server| {
        let long = format!("{{\"name\":\"{}\"}}", "x".repeat(300_000));
        for (method, path, body, status) in [
            ("POST", "volumes", r#"{"name":"v","size_bytes":1,"colour":"red"}"#, 400),
            ("POST", "volumes", r#"{"name":"../v","size_bytes":1073741824}"#, 400),
            ("POST", "volumes", r#"{"name":"v","size_bytes":1}"#, 400),
            ("POST", "volumes", r#"{"name":"v","size_bytes":-1}"#, 400),
            ("POST", "volumes", r#"{"name":"v","size_bytes":1073741824,"junction":"/a/.."}"#, 400),
            ("POST", "volumes", "not json", 400),
            ("POST", "volumes", &long, 400),
            ("PATCH", "volumes/v", "{}", 400),
            ("PATCH", "volumes/v", r#"{"size_bytes":1073741824}"#, 404),
            ("POST", "disks", r#"{"locations":[]}"#, 400),
            ("POST", "disks", r#"{"locations":["sdb"]}"#, 400),
            ("POST", "disks/zz/fail", "", 400),
            ("POST", "disks/00000000-0000-0000-0000-000000000000/fail", "", 404),
            ("POST", "aggregates/groups/9/grow", "", 404),
            ("GET", "jobs/x", "", 400),
            ("GET", "jobs/99", "", 404),
            ("GET", "explain", "", 400),
            ("GET", "explain?path=%2Fv&colour=red", "", 400),
            ("GET", "explain?path=%2Fv", "", 404),
            ("DELETE", "status", "", 405),
        ] {
            let (got, refused) = server.ask(method, &format!("/api/v1/{path}"), body).await;
            assert_eq!(got, status, "{method} {path}: {refused}");
            for key in ["error", "what_to_do"] {
                assert!(refused[key].as_str().is_some_and(|t| !t.is_empty()), "{path}: {refused}");
            }
        }
    });
}

#[test]
fn disks_scrub_schedule_and_status_answer() {
    with_server("show", MetricsAccess::Token, async |server| {
        let (_, disks) = server.ask("GET", "/api/v1/disks", "").await;
        assert_eq!(disks.as_array().unwrap().len(), 4);
        let fail = format!("/api/v1/disks/{}/fail", disks[0]["disk"].as_str().unwrap());
        let job = server.job(server.ask("POST", &fail, "").await).await;
        assert_eq!(
            (job["state"].as_str(), job["message"].as_str()),
            (Some("done"), Some("every group is whole"))
        );
        let job = server.job(server.ask("POST", "/api/v1/scrub", "").await).await;
        assert!(job["message"].as_str().unwrap().contains("0 blocks damaged"), "{job}");
        let (_, scrub) =
            server.ask("PUT", "/api/v1/scrub/schedule", r#"{"interval_hours":3}"#).await;
        assert_eq!(scrub["schedule"]["interval_hours"], 3);
        let (status, body) = server.ask("GET", "/api/v1/status", "").await;
        assert_eq!((status, body["health"].as_str()), (200, Some("ok")));
        assert_eq!(server.ask("POST", "/api/v1/aggregates/consistency-point", "").await.0, 204);
    });
}

#[test]
fn openapi_describes_every_resource() {
    with_server("openapi", MetricsAccess::Token, async |server| {
        let (_, api) = server.ask("GET", "/api/v1/openapi.json", "").await;
        let paths = api["paths"].as_object().unwrap();
        for path in [
            "status",
            "disks",
            "aggregates",
            "volumes",
            "exports",
            "jobs",
            "scrub",
            "explain",
            "counters",
            "volumes/{name}",
            "exports/{volume}",
            "jobs/{id}",
        ] {
            assert!(paths.contains_key(&format!("/api/v1/{path}")), "{path}");
        }
        assert!(paths.contains_key("/metrics"));
        assert!(api["components"]["schemas"].get("VolumeCreate").is_some());
    });
}

#[test]
fn token_file_is_private_stays_and_is_refused_when_others_can_read_it() {
    let dir = TempDir::new("token-file");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = cairn_sys::real::world(runtime.handle().clone()).unwrap();
    let path = dir.0.join("token");
    let token = Token::load_or_create(&path, &world).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert!(Token::load_or_create(&path, &world).unwrap() == token);
    assert!(token.matches(token.as_str()) && !token.matches("") && !token.matches(&"0".repeat(64)));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = Token::load_or_create(&path, &world).unwrap_err();
    assert!(matches!(refused, TokenError::Readable { mode: 0o644, .. }), "{refused}");
    std::fs::write(&path, "short").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(Token::load_or_create(&path, &world), Err(TokenError::Malformed { .. })));
}
