//! Hubs that refuse, err, lie or fall silent.

use std::collections::HashSet;
use std::fs;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::server::{Files, Reply, Request, Server, behave, sharded_model, single_file_model};
use super::{
    COMMIT, MODEL, OLD_COMMIT, assert_downloaded, has_unfinished, repo_dir, tempdir, tree,
};
use crate::error::Error;
use crate::hub::{Hub, MAX_ATTEMPTS};

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
            Error::Status { url, status: found } => assert_eq!((url, *found), (&storage, status)),
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
    let hub = Hub { timeout: Duration::from_millis(100), ..server.hub(&dir) };
    let error = hub.download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}
