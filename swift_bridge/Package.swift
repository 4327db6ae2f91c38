// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "moddit",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "ModditCore", targets: ["ModditCore"]),
        .library(name: "ModditCoreML", targets: ["ModditCoreML"]),
        .executable(name: "moddit-cli", targets: ["moddit-cli"]),
    ],
    targets: [
        .target(name: "ModditCore"),
        // declarations of Core ML, to type-check what uses them where there is no Core ML
        .target(name: "CoreMLStub"),
        .target(
            name: "ModditCoreML",
            dependencies: ["ModditCore", .target(name: "CoreMLStub", condition: .when(platforms: [.linux]))]
        ),
        .executableTarget(name: "moddit-cli", dependencies: ["ModditCore", "ModditCoreML"]),
        .testTarget(
            name: "ModditCoreTests",
            dependencies: ["ModditCore"],
            resources: [.copy("Golden")]
        ),
        .testTarget(name: "ModditCoreMLTests", dependencies: ["ModditCoreML"]),
        .testTarget(name: "ModditCLITests", dependencies: ["moddit-cli"]),
    ]
)
