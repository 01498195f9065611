//! Downloads that break off, and what becomes of them.

use std::fs::{self, TryLockError};
use std::io;
#[cfg(target_os = "linux")]
use std::path::Path;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use super::server::{Reply, Request, Server, behave, sha256, single_file_model};
use super::{MODEL, assert_downloaded, has_unfinished, repo_dir, tempdir, tree};
#[cfg(target_os = "linux")]
use crate::child;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::hub::{Hub, System};

#[test]
fn a_download_that_broke_off_is_resumed() {
    let dir = tempdir();
    let size = single_file_model()["model.safetensors"].len();
    let server = Server::start(single_file_model(), |request, reply| {
        if request.is_get("model.safetensors") { Reply { cut: Some(150), ..reply } } else { reply }
    });
    let hub = server.hub(&dir);
    match hub.download_model(MODEL, "main") {
        Err(Error::Interrupted { file, expected, found, .. }) => {
            assert_eq!(file, "model.safetensors");
            assert_eq!((expected, found), (Some(size as u64), 750));
        }
        other => panic!("{other:?}"),
    }
    let blob = repo_dir(&dir).join("blobs").join(sha256(&single_file_model()["model.safetensors"]));
    assert!(!blob.exists());
    server.requests();

    // As a new process does it after the old one was killed.
    assert_downloaded(&hub.download_model(MODEL, "main"), &single_file_model());
    let requests = server.requests();
    let offsets: Vec<_> = requests
        .iter()
        .filter(|request| request.is_get("model.safetensors"))
        .map(Request::offset)
        .collect();
    assert_eq!(offsets, [Some(750), Some(900), Some(1050)]);
    assert!(!requests.iter().any(|request| request.is_get("config.json")));
    assert!(!has_unfinished(&dir));
}

/// Leaves `leftover` behind as an unfinished download of the weights, and lets `server` finish it.
fn finish(leftover: &[u8], server: &Server) -> (Result<ModelFiles>, Vec<Option<usize>>) {
    let dir = tempdir();
    let hash = sha256(&single_file_model()["model.safetensors"]);
    let blobs = repo_dir(&dir).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{hash}.incomplete")), leftover).unwrap();
    let found = server.hub(&dir).download_model(MODEL, "main");
    if found.is_ok() {
        assert_downloaded(&found, &single_file_model());
        assert!(!has_unfinished(&dir));
    }
    let requests = server.requests();
    let gets = requests.iter().filter(|request| request.is_get("model.safetensors"));
    (found, gets.map(Request::offset).collect())
}

#[test]
fn leftovers_are_used_only_as_far_as_they_are_right() {
    let whole = single_file_model().remove("model.safetensors").unwrap();
    let server = Server::well_behaved(single_file_model());
    let check = |leftover: &[u8], offsets: &[Option<usize>]| {
        assert_eq!(finish(leftover, &server).1, offsets, "{} bytes", leftover.len());
    };
    check(&whole[..0], &[None]);
    check(&whole[..300], &[Some(300)]);
    check(&whole, &[]);
    let mut too_long = whole.clone();
    too_long.push(0);
    check(&too_long, &[None]);
    let zeros = vec![0; whole.len()];
    check(&zeros[..300], &[Some(300), None]);
    check(&zeros, &[None]);
}

#[test]
fn servers_that_do_not_resume() {
    let whole = single_file_model().remove("model.safetensors").unwrap();
    // The range is ignored.
    let server = Server::start(single_file_model(), |request, reply| {
        let mut request = request.clone();
        match request.headers.remove("range") {
            Some(_) => behave(&single_file_model(), &request),
            None => reply,
        }
    });
    assert_eq!(finish(&whole[..300], &server).1, [Some(300)]);
    // The range is refused.
    let server = Server::start(single_file_model(), |request, reply| {
        if request.offset().is_some() { Reply::status(416) } else { reply }
    });
    assert_eq!(finish(&whole[..300], &server).1, [Some(300), None]);
    // Another range is sent.
    let server = Server::start(single_file_model(), |request, reply| match request.offset() {
        Some(_) => reply.with("Content-Range", "bytes 5-1000/1001"),
        None => reply,
    });
    assert_eq!(finish(&whole[..300], &server).1, [Some(300), None]);
}

/// Where there are no locks another process may be at the same file: nobody writes to what somebody else does.
#[test]
fn without_locks_every_download_has_a_file_of_its_own() {
    let dir = tempdir();
    let hash = sha256(&single_file_model()["model.safetensors"]);
    let other = repo_dir(&dir).join("blobs").join(format!("{hash}.incomplete"));
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::write(&other, [0; 300]).unwrap();

    let breaking = Server::start(single_file_model(), |request, reply| {
        if request.is_get("model.safetensors") { Reply { cut: Some(10), ..reply } } else { reply }
    });
    let unlocked = |server: &Server| Hub {
        system: System {
            try_lock: |_| Err(TryLockError::Error(io::ErrorKind::Unsupported.into())),
            ..System::default()
        },
        ..server.hub(&dir)
    };
    let error = unlocked(&breaking).download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Interrupted { found: 50, .. }), "{error}");
    let is_unfinished = |path: &&PathBuf| path.extension().is_some_and(|it| it == "incomplete");
    assert_eq!(tree(dir.path()).iter().filter(is_unfinished).count(), 1);

    let server = Server::well_behaved(single_file_model());
    assert_downloaded(&unlocked(&server).download_model(MODEL, "main"), &single_file_model());
    let requests = server.requests();
    let get = requests.iter().find(|request| request.is_get("model.safetensors")).unwrap();
    assert_eq!(get.offset(), None);
    assert_eq!(fs::read(other).unwrap(), [0; 300]);
}

/// Where two machines have the same lock, each downloads the file, and neither spoils the other's.
#[cfg(unix)]
#[test]
fn locks_that_mean_nothing() {
    let dir = tempdir();
    let hub = |server: &Server| Hub {
        system: System { try_lock: |_| Ok(()), ..System::default() },
        ..server.hub(&dir)
    };
    let halfway = Arc::new(Barrier::new(2));
    let slow = {
        let halfway = Arc::clone(&halfway);
        Server::start(single_file_model(), move |request, reply| {
            let halfway = request.is_get("model.safetensors").then(|| Arc::clone(&halfway));
            Reply { halfway, ..reply }
        })
    };
    let hash = sha256(&single_file_model()["model.safetensors"]);
    let unfinished = repo_dir(&dir).join("blobs").join(format!("{hash}.incomplete"));
    // It can't resume, and breaks off.
    let breaking = Server::start(single_file_model(), |request, reply| {
        if !request.is_get("model.safetensors") {
            return reply;
        }
        let mut request = request.clone();
        request.headers.remove("range");
        Reply { cut: Some(10), ..behave(&single_file_model(), &request) }
    });
    let well_behaved = Server::well_behaved(single_file_model());
    thread::scope(|scope| {
        let first = scope.spawn(|| hub(&slow).download_model(MODEL, "main"));
        halfway.wait();
        while !fs::metadata(&unfinished).is_ok_and(|found| found.len() > 100) {
            thread::sleep(Duration::from_millis(10));
        }
        let error = hub(&breaking).download_model(MODEL, "main").unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
        // A third is whole before the first.
        assert_downloaded(&hub(&well_behaved).download_model(MODEL, "main"), &single_file_model());
        halfway.wait();
        assert_downloaded(&first.join().unwrap(), &single_file_model());
    });
    let blob = repo_dir(&dir).join("blobs").join(hash);
    assert_eq!(fs::read(blob).unwrap(), single_file_model()["model.safetensors"]);
    assert!(!has_unfinished(&dir), "{:?}", tree(dir.path()));
}

/// Two that take turns at one file have it whole, whoever gets there first.
#[test]
fn two_that_write_to_one_file() {
    let dir = tempdir();
    // Each answer brings a bit more.
    let server = Server::start(single_file_model(), |request, reply| {
        if request.is_get("model.safetensors") { Reply { cut: Some(300), ..reply } } else { reply }
    });
    thread::scope(|scope| {
        let calls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let system = System { try_lock: |_| Ok(()), ..System::default() };
                    Hub { system, ..server.hub(&dir) }.download_model(MODEL, "main")
                })
            })
            .collect();
        for call in calls {
            assert_downloaded(&call.join().unwrap(), &single_file_model());
        }
    });
    assert!(!has_unfinished(&dir), "{:?}", tree(dir.path()));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let dir = tempdir();
    let hash = sha256(&single_file_model()["model.safetensors"]);
    let blobs = repo_dir(&dir).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    std::os::unix::fs::symlink("/dev/full", blobs.join(format!("{hash}.incomplete"))).unwrap();
    let server = Server::well_behaved(single_file_model());
    let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
    assert!(error.to_string().contains("make some"), "{error}");
}

/// The disk is full in the middle of a file, and has room again later.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_loses_nothing() {
    if let Some(dir) = child::dir() {
        let address = fs::read_to_string(Path::new(&dir).join("address")).unwrap();
        let hub = Hub::new(Path::new(&dir).join("cache")).with_endpoint(address);
        let error = hub.download_model(MODEL, "main").unwrap_err();
        assert!(matches!(error, Error::FileTooLarge { .. }), "{error:?}");
        assert!(error.to_string().contains(".incomplete"), "{error}");
        assert!(error.to_string().contains("`ulimit -f`"), "{error}");
        return;
    }
    let dir = tempdir();
    let server = Server::well_behaved(single_file_model());
    fs::write(dir.path().join("address"), format!("http://{}/", server.address)).unwrap();
    // 512 or 1,024 bytes, as shells have it. By default the system would end a process that goes beyond.
    let limits = "trap '' XFSZ; ulimit -f 1";
    child::passes("hub::tests::resuming::a_disk_that_fills_up_loses_nothing", limits, dir.path());
    let blob = repo_dir(&dir).join("blobs").join(sha256(&single_file_model()["model.safetensors"]));
    assert!(!blob.exists());
    server.requests();

    assert_downloaded(&server.hub(&dir).download_model(MODEL, "main"), &single_file_model());
    let requests = server.requests();
    let get = requests.iter().find(|request| request.is_get("model.safetensors")).unwrap();
    assert!(matches!(get.offset(), Some(512 | 1024)), "{get:?}");
    assert!(!has_unfinished(&dir));
}
