//! Small local images for a test, made from busybox and removed with their guard.

use std::sync::atomic::{AtomicU32, Ordering};

use super::docker::{clean_up, docker, engine};

/// A local image under a name of its own; dropping it removes the name.
pub(crate) struct Image {
    name: String,
}

impl Image {
    /// Busybox with changes in the words of a Dockerfile: `LABEL`, `ENTRYPOINT`, `CMD`, `USER`, `ENV`, `WORKDIR`, `VOLUME`.
    pub(crate) async fn from_busybox(changes: &[&str]) -> Image {
        engine().await;
        let container = docker(&["create", "busybox:latest", "true"]).await;
        let image = Image::commit(&container, changes).await;
        docker(&["rm", &container]).await;
        image
    }

    /// Busybox with a layer of its own holding `content` as `/content`: a pull of it really transfers something.
    pub(crate) async fn with_content(content: &[u8]) -> Image {
        engine().await;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let file = folder.path().join("content");
        std::fs::write(&file, content).expect("the temporary folder can be written");
        let container = docker(&["create", "busybox:latest", "true"]).await;
        docker(&["cp", file.to_str().expect("a path of text"), &format!("{container}:/content")]).await;
        let image = Image::commit(&container, &[]).await;
        docker(&["rm", &container]).await;
        image
    }

    /// The name to run it by.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    async fn commit(container: &str, changes: &[&str]) -> Image {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let run = uuid::Uuid::now_v7().simple();
        let image = Image { name: format!("longshore-test/{run}-{number}:latest") };
        let mut args = vec!["commit"];
        for change in changes {
            args.extend(["--change", change]);
        }
        args.extend([container, image.name.as_str()]);
        docker(&args).await;
        image
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        clean_up(&["rmi", "--force", &self.name]);
    }
}
