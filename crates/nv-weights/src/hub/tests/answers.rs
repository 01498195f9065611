//! Hubs that refuse, err, lie or fall silent.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

use super::server::{Files, Reply, Request, Server, behave, sharded_model, single_file_model};
use super::{
    COMMIT, MODEL, OLD_COMMIT, assert_downloaded, has_unfinished, repo_dir, tempdir, tree,
};
#[cfg(unix)]
use crate::child;
use crate::error::Error;
use crate::hub::Hub;
use crate::hub::retry::MAX_ATTEMPTS;
use crate::hub::roots::CertPaths;

#[test]
fn refusals_say_what_to_do() {
    let check = |token: Option<&str>, reply: Reply, advice: &str, expected: fn(&Error) -> bool| {
        let dir = tempdir();
        let server = Server::start(single_file_model(), move |_, _| reply.clone());
        let hub = server.hub(&dir).with_token(token.map(str::to_owned)).unwrap();
        let error = hub.download_model(MODEL, "main").unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert!(error.to_string().contains(advice), "{error}");
        for request in server.requests() {
            let shown = request.headers.get("authorization").map(String::as_str);
            assert_eq!(shown, token.map(|token| format!("Bearer {token}")).as_deref());
        }
        assert!(tree(dir.path()).is_empty());
    };
    let token = Some("secret");
    let no_such_model: fn(&Error) -> bool = |error| matches!(error, Error::NoSuchModel { .. });
    let gated: fn(&Error) -> bool = |error| matches!(error, Error::Gated { .. });
    check(None, Reply::status(404), "check the model id", |error| {
        matches!(error, Error::MissingRemoteFile { .. })
    });
    check(None, Reply::error(404, "RepoNotFound"), "check the spelling", no_such_model);
    check(None, Reply::error(401, "RepoNotFound"), "set HF_TOKEN", no_such_model);
    check(None, Reply::status(401), "set HF_TOKEN", no_such_model);
    check(token, Reply::status(401), "that HF_TOKEN is valid", no_such_model);
    check(None, Reply::error(404, "RevisionNotFound"), "`main`", |error| {
        matches!(error, Error::NoSuchRevision { .. })
    });
    check(None, Reply::error(401, "GatedRepo"), "set HF_TOKEN", gated);
    check(token, Reply::error(403, "GatedRepo"), "check that HF_TOKEN", gated);
    check(None, Reply::status(403), "accept its terms", gated);
    check(None, Reply::status(429), "try again later", |error| {
        matches!(error, Error::Status { status: 429, .. })
    });
    check(None, Reply::status(500), "try again later", |error| {
        matches!(error, Error::Status { status: 500, .. })
    });
}

/// What a 404 says is kept only if a hub says it of that commit: the cache is other tools' too.
#[test]
fn only_a_hub_can_say_for_good_that_there_is_no_file() {
    let check = |reply: fn(Reply) -> Reply, is_kept: bool| {
        let dir = tempdir();
        let server = Server::start(single_file_model(), move |request, found| {
            let is_absent = request.path.ends_with("/chat_template.jinja");
            if is_absent { reply(found) } else { found }
        });
        let found = server.hub(&dir).download_model(MODEL, COMMIT);
        assert_downloaded(&found, &single_file_model());
        let kept = repo_dir(&dir).join(".no_exist").join(COMMIT);
        assert!(kept.join("tokenizer_config.json").is_file());
        assert_eq!(kept.join("chat_template.jinja").is_file(), is_kept);
    };
    check(|reply| reply, true);
    check(|_| Reply::status(404), false);
    check(|_| Reply::error(404, "EntryNotFound"), false);
    check(|reply| reply.with("X-Repo-Commit", OLD_COMMIT), false);
}

#[test]
fn a_file_that_must_exist_is_asked_for_whatever_the_cache_says() {
    let dir = tempdir();
    // What answers at a mistyped HF_ENDPOINT.
    let other = Server::start(Files::new(), |_, _| Reply::status(404));
    let error = other.hub(&dir).download_model(MODEL, COMMIT).unwrap_err();
    assert!(matches!(error, Error::MissingRemoteFile { .. }), "{error}");
    assert!(tree(dir.path()).is_empty());

    let kept = repo_dir(&dir).join(".no_exist").join(COMMIT);
    fs::create_dir_all(&kept).unwrap();
    for file in ["config.json", "model.safetensors.index.json", "model-1.safetensors"] {
        fs::write(kept.join(file), "").unwrap();
    }
    let server = Server::well_behaved(sharded_model());
    assert_downloaded(&server.hub(&dir).download_model(MODEL, COMMIT), &sharded_model());
}

#[test]
fn an_error_after_a_good_description() {
    let dir = tempdir();
    let server = Server::start(single_file_model(), |request, reply| {
        if request.is_get("model.safetensors") { Reply::status(500) } else { reply }
    });
    let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Status { status: 500, .. }), "{error}");
    let attempts =
        server.requests().iter().filter(|request| request.is_get("model.safetensors")).count();
    assert_eq!(attempts, MAX_ATTEMPTS as usize);
    assert!(!repo_dir(&dir).join("refs").exists());

    // One that passes is not even noticed.
    let count = Mutex::new(0);
    let server = Server::start(single_file_model(), move |request, reply| {
        let mut count = count.lock().unwrap();
        *count += usize::from(request.is_get("model.safetensors"));
        if request.is_get("model.safetensors") && *count < 3 { Reply::status(502) } else { reply }
    });
    assert_downloaded(&server.hub(&dir).download_model(MODEL, "main"), &single_file_model());
    assert!(!has_unfinished(&dir));
}

#[test]
fn damage_is_noticed() {
    let check = |file: &'static str, damage: fn(&mut Vec<u8>), expected: fn(&Error) -> bool| {
        let dir = tempdir();
        let server = Server::start(single_file_model(), move |request, mut reply| {
            if request.is_get(file) {
                damage(&mut reply.body);
                reply.unsized_body = true;
            }
            reply
        });
        let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
        assert!(expected(&error), "{error}");
        assert!(error.to_string().contains(file), "{error}");
        assert!(!repo_dir(&dir).join("snapshots").join(COMMIT).join(file).exists());
        assert!(!repo_dir(&dir).join("refs").exists());
    };
    check(
        "model.safetensors",
        |body| body[500] ^= 1,
        |error| matches!(error, Error::Corrupt { .. }),
    );
    check("model.safetensors", |body| body.push(0), |error| matches!(error, Error::TooLong { .. }));
    check("model.safetensors", Vec::clear, |error| matches!(error, Error::Interrupted { .. }));
    check("config.json", |body| body.push(0), |error| matches!(error, Error::TooLong { .. }));
    check("config.json", Vec::clear, |error| matches!(error, Error::Interrupted { .. }));
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let content = single_file_model().remove("model.safetensors").unwrap();
    let served = content.clone();
    let elsewhere = Server::start(Files::new(), move |request, _| Reply {
        body: served[request.offset().unwrap_or(0)..].to_vec(),
        ..Reply::status(200)
    });
    let address = elsewhere.address;
    let server = Server::start(single_file_model(), move |request, reply| {
        if request.path.ends_with("/config.json") && !request.path.starts_with("/moved") {
            // A path of the same hub: followed for the description too.
            return Reply::status(307).with("Location", format!("/moved{}", request.path));
        }
        if let Some(path) = request.path.strip_prefix("/moved") {
            let request = Request { path: path.into(), ..request.clone() };
            return behave(&single_file_model(), &request);
        }
        if request.path.ends_with("/model.safetensors") {
            let size = single_file_model()["model.safetensors"].len();
            return Reply { status: 302, body: b"elsewhere".to_vec(), ..reply }
                .with("Location", format!("http://{address}/storage/model.safetensors?signature=x"))
                .with("X-Linked-Size", size.to_string());
        }
        reply
    });
    let dir = tempdir();
    let hub = server.hub(&dir).with_token(Some("secret".into())).unwrap();
    assert_downloaded(&hub.download_model(MODEL, "main"), &single_file_model());
    assert!(
        server.requests().iter().all(|request| request.headers["authorization"] == "Bearer secret")
    );
    let foreign = elsewhere.requests();
    assert_eq!(foreign.len(), 1);
    assert!(!foreign[0].headers.contains_key("authorization"));
    assert!(!format!("{hub:?}").contains("secret"));
    assert!(matches!(hub.with_token(Some("se\ncret".into())), Err(Error::Token)));
}

/// What storage, or a proxy in front of it, refuses says nothing of the model.
#[test]
fn a_refusal_by_another_host_is_not_the_hubs() {
    for status in [401, 403, 404] {
        let elsewhere = Server::start(Files::new(), move |_, _| Reply::status(status));
        let storage = format!("http://{}/storage", elsewhere.address);
        let location = format!("{storage}?signature=secret");
        let server = Server::start(single_file_model(), move |request, reply| {
            if request.is_get("model.safetensors") {
                Reply::status(302).with("Location", location.clone())
            } else {
                reply
            }
        });
        let error = server.hub(&tempdir()).download_model(MODEL, "main").unwrap_err();
        match &error {
            Error::Status { url, status: found, .. } => {
                assert_eq!((url, *found), (&storage, status));
            }
            other => panic!("{other:?}"),
        }
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
}

#[test]
fn answers_that_no_hub_gives() {
    let check = |file: &'static str, change: fn(Reply) -> Reply, expected: fn(&Error) -> bool| {
        let dir = tempdir();
        let server = Server::start(single_file_model(), move |request, reply| {
            let is_described = request.method == "HEAD" && request.path.ends_with(file);
            if is_described { change(reply) } else { reply }
        });
        let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert_eq!(
            tree(dir.path()).iter().filter(|path| path.starts_with("cache")).count(),
            tree(dir.path()).len()
        );
        assert!(!tree(dir.path()).iter().any(|path| path.to_string_lossy().contains("evil")));
    };
    let bad: fn(&Error) -> bool = |error| matches!(error, Error::BadAnswer { .. });
    for file in ["config.json", "model.safetensors"] {
        check(file, |reply| reply.with("X-Linked-Etag", "\"../../../../evil\""), bad);
        check(file, |reply| reply.with("X-Linked-Etag", "/evil"), bad);
        check(file, |reply| reply.with("X-Linked-Etag", "..\\evil"), bad);
        check(file, |reply| reply.with("X-Linked-Etag", "e".repeat(300)), bad);
        check(file, |reply| reply.with("X-Linked-Etag", ""), bad);
        check(file, |reply| reply.with("X-Linked-Etag", "evil.incomplete"), bad);
        check(file, |reply| reply.with("X-Linked-Size", "-1"), bad);
        check(file, |reply| reply.with("X-Linked-Size", "99999999999999999999999"), bad);
        check(file, |reply| reply.with("X-Repo-Commit", "../../evil"), bad);
        check(file, |reply| reply.with("X-Repo-Commit", "/evil"), bad);
        check(file, |reply| reply.with("X-Repo-Commit", ""), bad);
        check(file, |_| Reply::status(200), bad);
        check(file, |_| Reply::status(302), bad);
        check(file, |_| Reply::status(302).with("Location", "evil"), bad);
        check(file, |_| Reply::status(302).with("Location", "file:///evil"), bad);
        check(
            file,
            |_| Reply::status(302).with("Location", format!("/{file}", file = "config.json")),
            |error| matches!(error, Error::NoSuchModel { .. } | Error::BadAnswer { .. }),
        );
    }
    // Another commit than the one that was asked for.
    check("model.safetensors", |reply| reply.with("X-Repo-Commit", OLD_COMMIT), bad);
}

#[test]
fn shards_are_named_by_names() {
    for shard in [
        "../evil.safetensors",
        "/evil.safetensors",
        "a/evil.safetensors",
        "evil",
        ".evil.safetensors",
    ] {
        let mut files = sharded_model();
        let index = format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
        files.insert("model.safetensors.index.json", index.into_bytes());
        let dir = tempdir();
        let server = Server::well_behaved(files);
        let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
        assert!(matches!(&error, Error::ShardName { name, .. } if name == "a"), "{error:?}");
        assert!(!server.requests().iter().any(|request| request.path.contains("evil")));
    }
}

#[test]
fn a_shard_that_the_hub_lacks() {
    let mut files = sharded_model();
    files.remove("model-2.safetensors");
    let server = Server::well_behaved(files);
    let error = server.hub(&tempdir()).download_model(MODEL, "main").unwrap_err();
    assert!(
        matches!(&error, Error::MissingRemoteFile { url } if url.ends_with("model-2.safetensors")),
        "{error}"
    );
}

/// Connections that come to nothing are made again, whichever request they are for.
#[test]
fn a_network_that_fails_for_a_moment_is_not_noticed() {
    let failed = Mutex::new(HashSet::new());
    let server = Server::start(sharded_model(), move |request, reply| {
        let is_first =
            failed.lock().unwrap().insert((request.method.clone(), request.path.clone()));
        if is_first { Reply { is_dropped: true, ..reply } } else { reply }
    });
    let dir = tempdir();
    let hub = server.hub(&dir);
    assert_downloaded(&hub.download_model(MODEL, "main"), &sharded_model());

    // With a whole model in the cache nobody waits for the hub.
    let silent = Server::start(Files::new(), |_, reply| Reply { is_dropped: true, ..reply });
    assert_downloaded(&silent.hub(&dir).download_model(MODEL, "main"), &sharded_model());
    assert_eq!(silent.requests().len(), 1);
    let error = silent.hub(&tempdir()).download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("run it again"), "{error}");
    assert_eq!(silent.requests().len(), MAX_ATTEMPTS as usize);
}

#[test]
fn a_server_that_falls_silent() {
    let server = Server::start(single_file_model(), |_, reply| {
        thread::sleep(Duration::from_millis(500));
        reply
    });
    let dir = tempdir();
    let hub = Hub { etag_timeout: Duration::from_millis(100), ..server.hub(&dir) };
    let error = hub.download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(server.requests().len(), MAX_ATTEMPTS as usize);

    // The bytes of files have a limit of their own.
    let hub = Hub { download_timeout: Duration::from_millis(100), ..server.hub(&dir) };
    let error = hub.download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
    let requests = server.requests();
    assert_eq!(requests.iter().filter(|request| request.method == "HEAD").count(), 2);
    assert_eq!(requests.iter().filter(|request| request.is_get("config.json")).count(), 5);
}

#[test]
fn a_server_that_asks_for_a_pause_gets_it() {
    const DATE: (&str, &str) = ("Date", "Sun, 06 Nov 1994 08:49:37 GMT");
    let refuse_first = |headers: &'static [(&'static str, &str)], method: &'static str| {
        let count = Mutex::new(0);
        Server::start(single_file_model(), move |request, reply| {
            let mut count = count.lock().unwrap();
            let is_meant = request.method == method && request.path.ends_with("/model.safetensors");
            *count += usize::from(is_meant);
            if !is_meant || *count > 1 {
                return reply;
            }
            let refusal = Reply::status(429);
            headers.iter().fold(refusal, |refusal, (name, value)| refusal.with(name, *value))
        })
    };
    for method in ["HEAD", "GET"] {
        let servers = [
            refuse_first(&[("Retry-After", "1")], method),
            refuse_first(&[("Retry-After", "Sun, 06 Nov 1994 08:49:38 GMT"), DATE], method),
            refuse_first(&[("RateLimit", r#""api";r=0;t=1"#)], method),
        ];
        for server in servers {
            let start = Instant::now();
            let found = server.hub(&tempdir()).download_model(MODEL, "main");
            assert!(start.elapsed() >= Duration::from_secs(1));
            assert!(found.is_ok(), "{found:?}");
        }
        // A pause beyond reason is the user's to make.
        let server = refuse_first(&[("Retry-After", "7380")], method);
        let error = server.hub(&tempdir()).download_model(MODEL, "main").unwrap_err();
        assert!(matches!(error, Error::Status { status: 429, .. }), "{error:?}");
        assert!(error.to_string().contains("asks to come back in 2 h 3 min"), "{error}");
    }
}

/// Answers that don't say how long they are, of which proxies make some.
#[test]
fn sizes_that_nobody_tells() {
    let start = |change: fn(&Request, Reply) -> Reply| Server::start(single_file_model(), change);
    let whole: [fn(&Request, Reply) -> Reply; 4] = [
        |request, reply| Reply { unsized_body: request.method == "HEAD", ..reply },
        |_, reply| Reply { is_chunked: true, ..reply },
        // Of what has a hash nobody needs to know the size.
        |request, reply| Reply { unsized_body: request.path.ends_with(".safetensors"), ..reply },
        // What was described needs no second word.
        |request, reply| Reply { unsized_body: request.method == "GET", ..reply },
    ];
    for change in whole {
        let dir = tempdir();
        let found = start(change).hub(&dir).download_model(MODEL, "main");
        assert_downloaded(&found, &single_file_model());
        assert!(!has_unfinished(&dir));
    }
    let check = |change: fn(&Request, Reply) -> Reply, expected: fn(&Error) -> bool| {
        let dir = tempdir();
        let error = start(change).hub(&dir).download_model(MODEL, "main").unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert!(!repo_dir(&dir).join("refs").exists());
    };
    // A small file that may have broken off.
    check(
        |_, reply| Reply { unsized_body: true, ..reply },
        |error| matches!(error, Error::BadAnswer { header: "content-length", .. }),
    );
    let interrupted: fn(&Error) -> bool = |error| matches!(error, Error::Interrupted { .. });
    check(
        |request, reply| Reply { unsized_body: request.method == "HEAD", cut: Some(1), ..reply },
        interrupted,
    );
    check(|_, reply| Reply { is_chunked: true, cut: Some(1), ..reply }, interrupted);
    check(
        |request, reply| {
            let is_cut = request.is_get("model.safetensors");
            let unsized_body = request.path.ends_with(".safetensors");
            Reply { unsized_body, cut: is_cut.then_some(500), ..reply }
        },
        |error| matches!(error, Error::Corrupt { .. }),
    );
}

/// What answers in the place of a hub, as a proxy of a company does, and whom to trust.
#[test]
fn a_certificate_must_be_trusted() {
    let fixture =
        |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![CertificateDer::from_pem_file(fixture("leaf.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(fixture("leaf.key")).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let server = Server::start_with_tls(single_file_model(), Arc::new(tls));
    let hub = |dir: &TempDir, certificates: Option<CertPaths>| Hub {
        certificates,
        ..server.hub(dir).with_endpoint(format!("https://{}", server.address))
    };
    let dir = tempdir();
    let error = hub(&dir, None).download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error:?}");
    assert!(error.to_string().contains("set SSL_CERT_FILE"), "{error}");

    let path = fixture("ca.pem");
    let trusted = CertPaths { names: "SSL_CERT_FILE", file: Some(path), dirs: Vec::new() };
    let found = hub(&dir, Some(trusted)).download_model(MODEL, "main");
    assert_downloaded(&found, &single_file_model());
    // What is in the cache needs nobody's certificate.
    assert_downloaded(&hub(&dir, None).download_model(MODEL, "main"), &single_file_model());
    let missing = CertPaths::file_or_dir("SSL_CERT_FILE", "/no/such/file.pem".into());
    let offline = hub(&dir, Some(missing.clone())).with_offline(true);
    assert_downloaded(&offline.download_model(MODEL, "main"), &single_file_model());
    let error = hub(&tempdir(), Some(missing)).download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Certificates { .. }), "{error:?}");
}

/// In a process of its own, whose environment says all.
#[cfg(unix)]
#[test]
fn a_token_that_the_environment_withholds() {
    if child::dir().is_some() {
        let hub = Hub::from_env().unwrap();
        let error = hub.download_model(MODEL, "main").unwrap_err().to_string();
        assert!(error.contains("unset HF_HUB_DISABLE_IMPLICIT_TOKEN"), "{error}");
        let error = hub.with_token(Some("given".into())).unwrap().download_model(MODEL, "main");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN is valid"), "{error}");
        return;
    }
    let dir = tempdir();
    let server = Server::start(single_file_model(), |_, _| Reply::error(401, "RepoNotFound"));
    let variables = format!(
        "export HF_HUB_DISABLE_IMPLICIT_TOKEN=1 HF_TOKEN=secret HF_HUB_CACHE='{}' HF_ENDPOINT=http://{} \
         NO_PROXY=127.0.0.1; unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE",
        dir.path().display(),
        server.address,
    );
    let name = "hub::tests::answers::a_token_that_the_environment_withholds";
    child::passes(name, &variables, dir.path());
    let requests = server.requests();
    let shown: Vec<_> =
        requests.iter().map(|request| request.headers.get("authorization")).collect();
    assert_eq!(shown, [None, Some(&"Bearer given".to_owned())]);
}
