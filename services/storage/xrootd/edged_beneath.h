// No path leads out of an export: the server itself would follow a link, wherever it points.

#pragma once

#include <fcntl.h>
#include <grp.h>
#include <linux/openat2.h>
#include <pwd.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int kRaces = 16;  // renames met on the way before a path is given up

// This thread's file accesses as an account, where the server becomes accounts (xrootd-multiuser): what the server's
// own user may not enter, it could not look into either.
class AsAccount {
public:
    explicit AsAccount(const std::string &account) {
        if (account.empty()) return;
        passwd entry{}, *found = nullptr;
        std::vector<char> buffer(16384);
        if (getpwnam_r(account.c_str(), &entry, buffer.data(), buffer.size(), &found) != 0 || !found) return;
        int count = 64;
        std::vector<gid_t> groups(static_cast<size_t>(count));
        while (getgrouplist(account.c_str(), found->pw_gid, groups.data(), &count) < 0 && count <= 65536)
            groups.resize(static_cast<size_t>(count));
        // the bare calls change this thread alone; the C library's change all of them
        if (syscall(SYS_setgroups, count, groups.data()) != 0) return;
        own_gid_ = setfsgid(found->pw_gid);
        own_uid_ = setfsuid(found->pw_uid);
        became_ = static_cast<uid_t>(setfsuid(static_cast<uid_t>(-1))) == found->pw_uid;
    }
    ~AsAccount() {
        if (own_uid_ < 0) return;
        setfsuid(static_cast<uid_t>(own_uid_));
        setfsgid(static_cast<gid_t>(own_gid_));
        syscall(SYS_setgroups, 0, nullptr);
    }
    AsAccount(const AsAccount &) = delete;
    AsAccount &operator=(const AsAccount &) = delete;

    bool became() const { return became_; }

private:
    int own_uid_ = -1, own_gid_ = -1;
    bool became_ = false;
};

bool is_link(int root, const std::string &inside) {
    char target[2];
    return readlinkat(root, inside.c_str(), target, sizeof target) >= 0;
}

long opened_path(int root, const std::string &inside, unsigned long long resolve) {
    open_how how{};
    how.flags = O_PATH | O_CLOEXEC;
    how.resolve = resolve;
    return syscall(SYS_openat2, root, inside.c_str(), &how, sizeof how);
}

// Whether no link is on the way: nearly always, and then one look is enough. What is not there yet (ENOENT) will be
// made below directories that are none.
bool without_links(int root, const std::string &inside) {
    const long fd = opened_path(root, inside, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    if (fd >= 0) close(static_cast<int>(fd));
    return fd >= 0 || errno == ENOENT;
}

bool beneath(int root, std::string inside) {
    inside.erase(0, inside.find_first_not_of('/'));
    if (inside.empty() || without_links(root, inside)) return true;
    for (int races = 0; !inside.empty();) {
        const long fd = opened_path(root, inside, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS);
        if (fd >= 0) {
            close(static_cast<int>(fd));
            return true;
        }
        if (errno == EAGAIN && ++races < kRaces) continue;
        if (errno != ENOENT) return errno == EACCES || errno == ENOTDIR || errno == ENAMETOOLONG;  // the server's to say
        if (is_link(root, inside)) return false;  // it leads nowhere yet: what is made there lies elsewhere
        const auto slash = inside.rfind('/');
        inside.resize(slash == std::string::npos ? 0 : slash);  // not there yet: where it would be made
    }
    return true;
}

// An export's root, opened again each second: a file system may be mounted there later.
class Root {
public:
    explicit Root(std::string path) : path_(std::move(path)) {}

    // as_is: opened for this look alone, with the rights that this thread has now.
    bool holds(const std::string &inside, bool as_is) const {
        const auto fd = as_is ? opened() : kept();
        return *fd >= 0 && beneath(*fd, inside);
    }

private:
    using Descriptor = std::shared_ptr<const int>;

    Descriptor opened() const {
        const int fd = open(path_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
        return Descriptor(new int(fd), [](const int *one) {
            if (*one >= 0) close(*one);
            delete one;
        });
    }

    Descriptor kept() const {
        const auto now = std::chrono::steady_clock::now();
        std::lock_guard<std::mutex> hold(mutex_);
        if (!fd_ || *fd_ < 0 || now - at_ > std::chrono::seconds(1)) {
            fd_ = opened();
            at_ = now;
        }
        return fd_;
    }

    const std::string path_;
    mutable std::mutex mutex_;
    mutable Descriptor fd_;
    mutable std::chrono::steady_clock::time_point at_;
};

}  // namespace
