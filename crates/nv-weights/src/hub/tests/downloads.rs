//! What a hub that behaves serves, and what the cache then holds.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::server::{
    Files, Reply, Server, many_shards, safetensors, sha256, sharded_model, single_file_model,
};
use super::{COMMIT, MODEL, OLD_COMMIT, assert_downloaded, has_unfinished, repo_dir, tempdir};
use crate::error::Error;
use crate::hub::{Hub, System};

#[test]
fn a_model_is_downloaded_once() {
    for files in [single_file_model(), sharded_model()] {
        let dir = tempdir();
        let server = Server::well_behaved(files.clone());
        let hub = server.hub(&dir);
        assert_downloaded(&hub.download_model(MODEL, "main"), &files);
        assert!(!has_unfinished(&dir));
        let gets = server.requests().iter().filter(|request| request.method == "GET").count();
        assert_eq!(gets, files.len());

        // Once more: one request, to ask which commit the branch is now.
        assert_downloaded(&hub.download_model(MODEL, "main"), &files);
        assert_eq!(server.requests().len(), 1);
        // By commit, or offline: none.
        assert_downloaded(&hub.download_model(MODEL, COMMIT), &files);
        let offline = hub.with_offline(true);
        assert_downloaded(&offline.download_model(MODEL, "main"), &files);
        assert_downloaded(&offline.download_model(MODEL, COMMIT), &files);
        assert_eq!(server.requests().len(), 0);
    }
}

#[test]
fn a_config_that_is_refused_ends_a_download() {
    let dir = tempdir();
    let server = Server::well_behaved(sharded_model());
    let hub = server.hub(&dir);
    let refuse = |path: &Path| -> Result<(), Box<dyn std::error::Error>> {
        assert_eq!(fs::read(path).unwrap(), b"{}");
        Err("a model of another kind".into())
    };
    let error = hub.download_model_with(MODEL, "main", refuse).unwrap_err();
    assert_eq!(error.to_string(), "a model of another kind");
    assert!(server.requests().iter().all(|request| request.path.ends_with("/config.json")));

    // Whoever can use it gets what they made of it, and the files.
    let read = |path: &Path| -> Result<usize, Error> { Ok(fs::read(path).unwrap().len()) };
    let check = |hub: &Hub, model: &str| {
        let (files, len) = hub.download_model_with(model, "main", read).unwrap();
        assert_eq!(len, 2);
        assert_downloaded(&Ok(files), &sharded_model());
    };
    check(&hub, MODEL);
    check(&hub.clone().with_offline(true), MODEL);
    check(&hub, repo_dir(&dir).join("snapshots").join(COMMIT).to_str().unwrap());
    drop(server);
    check(&hub, MODEL);
}

#[cfg(unix)]
#[test]
fn the_cache_has_the_layout_of_other_tools() {
    let dir = tempdir();
    let files = BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", safetensors("w", 5)),
    ]);
    let server = Server::well_behaved(files.clone());
    server.hub(&dir).download_model(MODEL, "main").unwrap();
    let repo = repo_dir(&dir);
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let hash = sha256(&files["model.safetensors"]);
    for (name, blob) in [("config.json", "git-2"), ("model.safetensors", hash.as_str())] {
        let link = fs::read_link(repo.join("snapshots").join(COMMIT).join(name)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(blob));
        assert_eq!(fs::read(repo.join("blobs").join(blob)).unwrap(), files[name]);
    }
    assert!(repo.join(".no_exist").join(COMMIT).join("tokenizer.json").is_file());
}

#[test]
fn what_goes_with_a_tokenizer_is_downloaded_too() {
    let text = [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "additional_chat_templates/default.jinja",
        "additional_chat_templates/tool_use.jinja",
    ];
    let vocab = ["merges.txt", "vocab.json"];
    let with = |names: &[&'static str]| -> Files {
        // The server tells files apart by their lengths.
        let text = names.iter().enumerate().map(|(index, &name)| (name, vec![b'x'; 10 + index]));
        let weights = ("model.safetensors", safetensors("w", 5));
        text.chain([("config.json", b"{}".to_vec()), weights]).collect()
    };
    for names in [[&text[..], &vocab[..]].concat(), [&text[..], &["tokenizer.json"]].concat()] {
        let dir = tempdir();
        let files = with(&names);
        let server = Server::well_behaved(files.clone());
        let hub = server.hub(&dir);
        assert_downloaded(&hub.download_model(MODEL, "main"), &files);
        assert_downloaded(&hub.with_offline(true).download_model(MODEL, "main"), &files);
    }
    // The vocabulary comes with tokenizer.json, if there is one.
    let server = Server::well_behaved(with(&[&vocab[..], &["tokenizer.json"]].concat()));
    let dir = tempdir();
    let found = server.hub(&dir).download_model(MODEL, "main").unwrap();
    assert_eq!(found.text, [found.dir.join("tokenizer.json")]);
    assert!(!server.requests().iter().any(|request| request.path.ends_with("/vocab.json")));
}

#[test]
fn a_revision_is_honoured() {
    let dir = tempdir();
    let server = Server::start(single_file_model(), |request, reply| {
        let is_old = request.path.contains("/v1/") || request.path.contains(OLD_COMMIT);
        if is_old && request.path.ends_with("/config.json") {
            Reply { body: b"{\"old\":1}".to_vec(), ..reply }.with("ETag", "\"old\"")
        } else {
            reply
        }
    });
    let hub = server.hub(&dir);
    let config = |revision| fs::read(hub.download_model(MODEL, revision).unwrap().config).unwrap();
    assert_eq!(config("main"), b"{}");
    server.requests();
    assert_eq!(config("v1"), b"{\"old\":1}");
    // The weights are the same at both: linked, not fetched.
    assert!(!server.requests().iter().any(|request| request.is_get("model.safetensors")));
    let hub = hub.clone().with_offline(true);
    let config = |revision| fs::read(hub.download_model(MODEL, revision).unwrap().config).unwrap();
    assert_eq!(config("main"), b"{}");
    assert_eq!(config("v1"), b"{\"old\":1}");
    assert_eq!(config(OLD_COMMIT), b"{\"old\":1}");
    assert!(matches!(hub.download_model(MODEL, "v2"), Err(Error::NotCached { source: None, .. })));
}

#[test]
fn a_local_folder_stands_for_itself() {
    let dir = tempdir();
    for (name, content) in single_file_model() {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let server = Server::well_behaved(Files::new());
    let found = server.hub(&tempdir()).download_model(dir.path().to_str().unwrap(), "main");
    assert_downloaded(&found, &single_file_model());
    assert!(server.requests().is_empty());
    let missing = dir.path().join("missing");
    let error = server.hub(&dir).download_model(missing.to_str().unwrap(), "main").unwrap_err();
    assert!(matches!(error, Error::ModelId { .. }), "{error}");
    // A file in it does not.
    let file = dir.path().join("model.safetensors");
    let error = server.hub(&dir).download_model(file.to_str().unwrap(), "main").unwrap_err();
    assert!(matches!(&error, Error::NotAFolder { path } if *path == file), "{error}");
}

/// As on FAT, and on some networks' file systems.
#[test]
fn without_links_files_move_in() {
    let dir = tempdir();
    let server = Server::well_behaved(sharded_model());
    let system =
        System { symlink: |_, _| Err(io::ErrorKind::PermissionDenied.into()), ..System::default() };
    let hub = Hub { system, ..server.hub(&dir) };
    assert_downloaded(&hub.download_model(MODEL, "main"), &sharded_model());
    let blobs = || fs::read_dir(repo_dir(&dir).join("blobs")).unwrap().count();
    assert_eq!(blobs(), 0);
    server.requests();
    assert_downloaded(&hub.download_model(MODEL, COMMIT), &sharded_model());
    assert!(server.requests().is_empty());
    assert_downloaded(&hub.download_model(MODEL, "v1"), &sharded_model());
    // A blob that another snapshot may lead to stays.
    let dir = tempdir();
    let hub = server.hub(&dir);
    assert_downloaded(&hub.download_model(MODEL, "main"), &sharded_model());
    let blobs = || fs::read_dir(repo_dir(&dir).join("blobs")).unwrap().count();
    let before = blobs();
    let hub = Hub { system, ..hub };
    assert_downloaded(&hub.download_model(MODEL, "v1"), &sharded_model());
    assert_downloaded(&hub.download_model(MODEL, "main"), &sharded_model());
    assert_eq!(blobs(), before);
    assert!(!has_unfinished(&dir));
}

const SHARDS: [&str; 4] = ["a.safetensors", "b.safetensors", "c.safetensors", "d.safetensors"];

#[test]
fn shards_are_downloaded_at_once() {
    // Each is answered when all are asked for.
    let asked = Mutex::new(0);
    let all_asked = Condvar::new();
    let server = Server::start(many_shards(&SHARDS), move |request, reply| {
        if request.method == "GET" && request.path.ends_with(".safetensors") {
            *asked.lock().unwrap() += 1;
            all_asked.notify_all();
            let (asked, wait) = all_asked
                .wait_timeout_while(asked.lock().unwrap(), Duration::from_secs(2), |asked| {
                    *asked < SHARDS.len()
                })
                .unwrap();
            drop(asked);
            if wait.timed_out() {
                return Reply::status(404);
            }
        }
        reply
    });
    let dir = tempdir();
    assert_downloaded(&server.hub(&dir).download_model(MODEL, "main"), &many_shards(&SHARDS));
    assert!(!has_unfinished(&dir));
}

#[test]
fn the_first_error_ends_the_other_downloads() {
    let server = Server::start(many_shards(&SHARDS), |request, reply| {
        if request.is_get("b.safetensors") {
            return Reply::error(404, "EntryNotFound");
        }
        if request.method == "GET" && request.path.ends_with(".safetensors") {
            // Asked again and again, if nothing tells them to end.
            return Reply { cut: Some(10), ..Reply::status(503).with("Retry-After", "60") };
        }
        reply
    });
    let dir = tempdir();
    let start = Instant::now();
    let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
    assert!(
        matches!(&error, Error::MissingRemoteFile { url } if url.ends_with("b.safetensors")),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(!repo_dir(&dir).join("refs").exists());
}

/// A relative path looks like a model's id.
#[test]
fn a_folder_that_is_not_there_is_named() {
    let server = Server::start(Files::new(), |_, _| Reply::error(404, "RepoNotFound"));
    let hub = server.hub(&tempdir());
    for hub in [hub.clone(), hub.with_offline(true)] {
        let error = hub.download_model("models/qwen3", "main").unwrap_err().to_string();
        assert!(error.starts_with("there is no folder `models/qwen3`, "), "{error}");
    }
}

#[test]
fn offline_and_not_cached() {
    let dir = tempdir();
    let server = Server::well_behaved(single_file_model());
    let hub = server.hub(&dir).with_offline(true);
    for revision in ["main", COMMIT] {
        let error = hub.download_model(MODEL, revision).unwrap_err();
        assert!(matches!(error, Error::NotCached { .. }), "{error}");
        assert!(error.to_string().contains("HF_HUB_OFFLINE"));
    }
    let snapshot = repo_dir(&dir).join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    match hub.download_model(MODEL, COMMIT) {
        Err(Error::NotCached { source: Some(source), .. }) => {
            assert!(matches!(*source, Error::NoWeights { .. }));
        }
        other => panic!("{other:?}"),
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_hub_that_is_away_is_replaced_by_the_cache() {
    let dir = tempdir();
    let server = Server::well_behaved(single_file_model());
    let hub = server.hub(&dir);
    hub.download_model(MODEL, "main").unwrap();
    drop(server);
    assert_downloaded(&hub.download_model(MODEL, "main"), &single_file_model());
    let error = hub.download_model("owner/other", "main").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");

    let failing = Server::start(Files::new(), |_, _| Reply::status(503));
    let hub = failing.hub(&dir);
    assert_downloaded(&hub.download_model(MODEL, "main"), &single_file_model());
    let error = hub.download_model("owner/other", "main").unwrap_err();
    assert!(matches!(error, Error::Status { status: 503, .. }), "{error}");
}

#[test]
fn two_downloads_at_once_make_one() {
    let dir = tempdir();
    let server = Server::start(single_file_model(), |request, reply| {
        if request.is_get("model.safetensors") {
            thread::sleep(Duration::from_millis(100));
        }
        reply
    });
    thread::scope(|scope| {
        let calls: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| server.hub(&dir).download_model(MODEL, "main")))
            .collect();
        for call in calls {
            assert_downloaded(&call.join().unwrap(), &single_file_model());
        }
    });
    let requests = server.requests();
    for file in single_file_model().keys() {
        let gets = requests.iter().filter(|request| request.is_get(file)).count();
        assert_eq!(gets, 1, "{file}");
    }
    assert!(!has_unfinished(&dir));
}
