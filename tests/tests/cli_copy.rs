//! `holdfast cp`: files in and out, and what a container may try meanwhile.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use holdfast_tests::{Holdfast, unique_id};

/// A container whose root it can write to; its id, and where that root is.
async fn writable(holdfast: &Holdfast, options: &[&str], script: &str) -> (String, PathBuf) {
    let id = unique_id("copy").to_string();
    let rootfs = holdfast.scratch.bundle().join("rootfs");
    let path = rootfs.to_str().expect("a path in UTF-8");
    let run = ["run", "-d", "--name", &id, "--read-only=false", "--rootfs", path];
    let script = format!("{script}; echo ready; sleep 100000");
    holdfast.ok(&[&run[..], options, &["--", "sh", "-c", &script]].concat()).await;
    holdfast.said(&id, "ready").await;
    (id, rootfs)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[tokio::test]
async fn files_and_trees_are_copied_in_and_out_as_cp_does() {
    let holdfast = Holdfast::start().await;
    let (id, rootfs) = writable(&holdfast, &["--tmpfs", "/mnt:1m"], "mkdir /there").await;
    let here = holdfast.scratch.path().join("here");
    fs::create_dir_all(here.join("tree/below")).unwrap();
    fs::write(here.join("tree/below/f"), "deep\n").unwrap();
    fs::write(here.join("tree/program"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(here.join("tree/program"), fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::symlink("below/f", here.join("tree/link")).unwrap();
    let [tree, file] = ["tree", "tree/below/f"].map(|name| text(&here.join(name)).to_owned());
    let into = |path: &str| format!("{id}:{path}");

    holdfast.ok(&["cp", &file, &into("/there")]).await;
    holdfast.ok(&["cp", &file, &into("/there/g")]).await;
    holdfast.ok(&["cp", &tree, &into("/there")]).await;
    holdfast.ok(&["cp", &format!("{tree}/."), &into("/there/content")]).await;
    // A directory that was there stays as it is.
    let there = rootfs.join("there/content");
    fs::set_permissions(&there, fs::Permissions::from_mode(0o700)).unwrap();
    holdfast.ok(&["cp", &format!("{tree}/."), &into("/there/content")]).await;
    assert_eq!(fs::metadata(&there).unwrap().mode() & 0o7777, 0o700);
    // What is mounted is there, too.
    holdfast.ok(&["cp", &file, &into("/mnt/f")]).await;
    let script = "cat /there/f /there/g /there/tree/link /there/content/below/f /mnt/f";
    assert_eq!(holdfast.ok(&["exec", &id, "sh", "-c", script]).await, "deep\n".repeat(5));
    let program = fs::metadata(rootfs.join("there/tree/program")).unwrap();
    assert_eq!((program.mode() & 0o7777, program.uid()), (0o755, 0));

    let back = here.join("back");
    holdfast.ok(&["cp", &into("/there/tree"), text(&back)]).await;
    assert_eq!(fs::read_to_string(back.join("below/f")).unwrap(), "deep\n");
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("below/f"));
    let times = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    assert_eq!(times(&back.join("program")), times(&here.join("tree/program")));
    // A file over a longer one, and a link as what it points to.
    fs::write(here.join("g"), "much longer than before\n").unwrap();
    holdfast.ok(&["cp", "-L", &into("/there/tree/link"), text(&here.join("g"))]).await;
    assert_eq!(fs::read_to_string(here.join("g")).unwrap(), "deep\n");

    for (from, to, said) in [
        (into("/none"), text(&here).to_owned(), "No such file"),
        (file.clone(), into("/none/"), "should be a directory"),
        (tree.clone(), into("/there/f"), "is not a directory"),
        (file.clone(), text(&back).to_owned(), "in a container"),
        (file.clone(), "nobody:/".to_owned(), "no such container"),
    ] {
        let error = holdfast.fails(1, &["cp", &from, &to]).await;
        assert!(error.contains(said), "{from} {to}: {error}");
    }
    holdfast.ok(&["kill", &id]).await;
    holdfast.ok(&["wait", &id]).await;
    assert_eq!(holdfast.ok(&["cp", &into("/there/f"), text(&here.join("h"))]).await, "");
    assert_eq!(fs::read_to_string(here.join("h")).unwrap(), "deep\n");
    holdfast.close().await;
}

#[tokio::test]
async fn links_of_a_container_lead_nowhere_outside_of_it() {
    let holdfast = Holdfast::start().await;
    let outside = holdfast.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret\n").unwrap();
    let shown = text(&outside).to_owned();
    let up = "../".repeat(40);
    let script = format!(
        "mkdir -p /trap{shown} /tree; echo own > /trap{shown}/secret; ln -s {shown} /absolute; \
         ln -s {up}{shown} /upwards; ln -s {shown}/secret /tree/secret; ln -s {shown}/new /new"
    );
    let (id, rootfs) = writable(&holdfast, &[], &script).await;
    let file = holdfast.scratch.path().join("file");
    fs::write(&file, "from the host\n").unwrap();
    let got = holdfast.scratch.path().join("got");
    for link in ["absolute", "upwards"] {
        // There is no such directory in the container, so there is nothing to read or to write.
        let error = holdfast.fails(1, &["cp", &format!("{id}:/{link}/secret"), text(&got)]).await;
        assert!(error.contains("No such file"), "{error}");
        let error = holdfast.fails(1, &["cp", text(&file), &format!("{id}:/{link}/made")]).await;
        assert!(error.contains("No such file"), "{error}");
    }
    let error = holdfast.fails(1, &["cp", text(&file), &format!("{id}:/new")]).await;
    assert!(error.contains("something else of that name"), "{error}");
    // A link in a tree is copied as a link.
    holdfast.ok(&["cp", &format!("{id}:/tree"), text(&got)]).await;
    assert_eq!(fs::read_link(got.join("secret")).unwrap(), outside.join("secret"));
    // The same paths with a directory of the container's own behind them.
    let moved = format!("mkdir -p {shown} && cp /trap{shown}/secret {shown}/secret");
    holdfast.ok(&["exec", &id, "sh", "-c", &moved]).await;
    let own = holdfast.scratch.path().join("own");
    holdfast.ok(&["cp", &format!("{id}:/upwards/secret"), text(&own)]).await;
    assert_eq!(fs::read_to_string(&own).unwrap(), "own\n");
    holdfast.ok(&["cp", text(&file), &format!("{id}:/absolute/made")]).await;
    assert!(rootfs.join(&shown[1..]).join("made").exists());
    // By no link of /proc either.
    let magic = format!("{id}:/proc/self/root{shown}/secret");
    holdfast.fails(1, &["cp", &magic, text(&own)]).await;
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret\n");
    holdfast.close().await;
}

#[tokio::test]
async fn what_is_no_file_is_neither_opened_nor_copied() {
    let holdfast = Holdfast::start().await;
    let script = "mkdir /tree; echo a > /tree/a; mkfifo /tree/fifo /fifo; ln -s fifo /tree/link";
    let (id, _) = writable(&holdfast, &[], script).await;
    let got = holdfast.scratch.path().join("got");
    let ran = holdfast.run(&["cp", &format!("{id}:/tree"), text(&got)]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("/tree/fifo: not copied"), "{ran:?}");
    assert_eq!(fs::read_dir(&got).unwrap().count(), 2);
    let error = holdfast.fails(1, &["cp", &format!("{id}:/fifo"), text(&got)]).await;
    assert!(error.contains("neither a file"), "{error}");
    // Nobody reads the FIFO, so opening it for writing would take for ever.
    let file = holdfast.scratch.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = holdfast.fails(1, &["cp", text(&file), &format!("{id}:/fifo")]).await;
    assert!(error.contains("not a regular file"), "{error}");
    holdfast.close().await;
}

#[tokio::test]
async fn a_root_that_is_read_only_stays_so() {
    let holdfast = Holdfast::start().await;
    let id = unique_id("copy").to_string();
    let run = ["run", "-d", "--name", &id, "--rootfs", "host", "--", "sleep", "100000"];
    holdfast.ok(&run).await;
    let file = holdfast.scratch.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = holdfast.fails(1, &["cp", text(&file), &format!("{id}:/etc/x")]).await;
    assert!(error.contains("Read-only file system"), "{error}");
    holdfast.ok(&["cp", text(&file), &format!("{id}:/tmp/x")]).await;
    assert_eq!(holdfast.ok(&["exec", &id, "cat", "/tmp/x"]).await, "x");
    assert!(!Path::new("/etc/x").exists());
    holdfast.close().await;
}
