//! GPUs: which the host has, and how a container is given some.

use std::path::Path;

use bollard::models::{ContainerCreateBody, DeviceRequest};

use super::engine::Image;

/// The label of images that were made for NVIDIA GPUs.
const WANTS_GPU: &str = "com.nvidia.volumes.needed";
/// Where NVIDIA's driver lists its devices.
const DRIVER: &str = "/proc/driver/nvidia/gpus";

/// The ids of the GPUs that this machine's driver lists.
pub fn found() -> Vec<String> {
    list_in(Path::new(DRIVER))
}

fn list_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut ids: Vec<String> = entries
        .filter_map(|entry| {
            let text = std::fs::read_to_string(entry.path().join("information")).ok()?;
            let uuid = text.lines().find_map(|line| line.strip_prefix("GPU UUID:"))?;
            Some(uuid.trim().to_owned())
        })
        .collect();
    ids.sort();
    ids
}

/// How a container came to its GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// As it was asked, or none was asked for.
    AsAsked,
    /// The image was made for GPUs and gets all there are.
    All,
    /// The image was made for GPUs and there is none.
    NoneHere,
}

/// Asks the engine for the devices of the slot. An image made for GPUs whose task declares none gets all of the host.
pub(super) fn give(body: &mut ContainerCreateBody, image: &Image, slot: &[String], host: &[String]) -> Given {
    let config = body.host_config.get_or_insert_default();
    if !slot.is_empty() {
        // A request of the task's own would reach devices that are another's.
        let requests = config.device_requests.get_or_insert_default();
        requests.retain(|request| !asks_for_gpus(request));
        requests.push(request(DeviceRequest { device_ids: Some(slot.to_vec()), ..DeviceRequest::default() }));
        return Given::AsAsked;
    }
    let asked = config.device_requests.as_ref().is_some_and(|requests| !requests.is_empty())
        || config.runtime.as_deref() == Some("nvidia");
    if asked || !image.labels.contains_key(WANTS_GPU) {
        return Given::AsAsked;
    }
    if host.is_empty() {
        return Given::NoneHere;
    }
    let all = DeviceRequest { device_ids: Some(host.to_vec()), ..DeviceRequest::default() };
    config.device_requests.get_or_insert_default().push(request(all));
    Given::All
}

fn request(request: DeviceRequest) -> DeviceRequest {
    DeviceRequest { capabilities: Some(vec![vec!["gpu".to_owned()]]), ..request }
}

fn asks_for_gpus(request: &DeviceRequest) -> bool {
    request.driver.as_deref() == Some("nvidia")
        || request.capabilities.iter().flatten().flatten().any(|capability| capability == "gpu")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(body: &ContainerCreateBody) -> Vec<DeviceRequest> {
        body.host_config.clone().unwrap_or_default().device_requests.unwrap_or_default()
    }

    fn ids(text: &[&str]) -> Vec<String> {
        text.iter().map(|id| (*id).to_owned()).collect()
    }

    fn made_for_gpus() -> Image {
        let labels = [(WANTS_GPU.to_owned(), "nvidia_driver".to_owned())].into();
        Image { labels, ..Image::default() }
    }

    #[test]
    fn the_driver_lists_devices_by_uuid() {
        let folder = tempfile::tempdir().unwrap();
        for (bus, uuid) in [("0000:01:00.0", "GPU-b"), ("0000:02:00.0", "GPU-a")] {
            let gpu = folder.path().join(bus);
            std::fs::create_dir(&gpu).unwrap();
            std::fs::write(gpu.join("information"), format!("Model: \t X\nGPU UUID: \t {uuid}\n")).unwrap();
        }
        assert_eq!(list_in(folder.path()), ["GPU-a", "GPU-b"]);
        assert!(list_in(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn a_slot_gives_its_devices_and_sets_aside_what_the_task_asked() {
        let mut body = ContainerCreateBody::default();
        let all = DeviceRequest { count: Some(-1), ..request(DeviceRequest::default()) };
        let other = DeviceRequest { driver: Some("fpga".to_owned()), ..DeviceRequest::default() };
        body.host_config.get_or_insert_default().device_requests = Some(vec![all, other]);
        assert_eq!(
            give(&mut body, &Image::default(), &ids(&["GPU-a"]), &ids(&["GPU-a", "GPU-b"])),
            Given::AsAsked
        );
        let requests = requests(&body);
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0].driver.as_deref(), Some("fpga"));
        assert_eq!(requests[1].device_ids, Some(ids(&["GPU-a"])));
        assert_eq!(requests[1].capabilities, Some(vec![ids(&["gpu"])]));
    }

    #[test]
    fn an_image_made_for_gpus_gets_all_unless_its_task_says_otherwise() {
        let host = ids(&["GPU-a", "GPU-b"]);
        let mut body = ContainerCreateBody::default();
        assert_eq!(give(&mut body, &made_for_gpus(), &[], &host), Given::All);
        assert_eq!(requests(&body)[0].device_ids, Some(host.clone()));

        let mut body = ContainerCreateBody::default();
        body.host_config.get_or_insert_default().runtime = Some("nvidia".to_owned());
        assert_eq!(give(&mut body, &made_for_gpus(), &[], &host), Given::AsAsked);
        assert!(requests(&body).is_empty());

        let mut body = ContainerCreateBody::default();
        assert_eq!(give(&mut body, &Image::default(), &[], &host), Given::AsAsked);
        assert!(requests(&body).is_empty());
    }

    #[test]
    fn an_image_made_for_gpus_runs_without_where_there_are_none() {
        let mut body = ContainerCreateBody::default();
        assert_eq!(give(&mut body, &made_for_gpus(), &[], &[]), Given::NoneHere);
        assert!(requests(&body).is_empty());
    }
}
